// The backend of the module _core: kernels of this CPU, in `threads` threads.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "cpu/kernels.h"
#include "recording.h"

namespace megalodon::bindings {

using Kernels = cpu::KernelTable;
using Queue = int;  // how many threads

inline constexpr DeviceType kDevice = DeviceType::cpu;
inline constexpr const char* kQueueName = "threads";
inline constexpr int kMaxThreads = 1024;  // OpenMP ends the process when the system refuses it a thread

inline const Kernels& kernels() { return cpu::kernels(); }

inline void check_queue(const char* op, int threads) {
  if (threads >= 1 && threads <= kMaxThreads) return;
  throw Error(Error::Kind::value, op, "threads", "an integer in [1, " + std::to_string(kMaxThreads) + "]",
              std::to_string(threads));
}

// Runs a kernel without the GIL, and notes it beside arrays() in the recording under way, if any; `workspace`
// is for backends that need one.
template <class Op, class Shape, class Allocate, class Arrays>
void execute(const char*, void (*kernel)(const Op&, int), const Op& op, const Shape&, int threads,
             const Allocate&, const Arrays& arrays) {
  {
    const pybind11::gil_scoped_release release;
    kernel(op, threads);
  }
  if (Recording* recording = Recording::current(); recording != nullptr) {
    recording->add([kernel, op](int team) { kernel(op, team); }, arrays());
  }
}
template <class Op, class Shape, class Allocate, class Arrays>
void execute(const char*, void (*kernel)(const Op&, const cpu::SequenceSpan&, int), const Op& op,
             const Shape& shape, int threads, const Allocate&, const Arrays& arrays) {
  const auto run = [kernel](const Op& call, const Shape& sizes, int team) {
    kernel(call, cpu::SequenceList(call.sequence, sizes).span(), team);
  };
  {
    const pybind11::gil_scoped_release release;
    run(op, shape, threads);
  }
  if (Recording* recording = Recording::current(); recording != nullptr) {
    recording->add([run, op, shape](int team) { run(op, shape, team); }, arrays());
  }
}

}  // namespace megalodon::bindings
