// The backend of the module _cuda: kernels of NVIDIA GPUs, queued on a stream of the current device.
#pragma once

#include <pybind11/pybind11.h>

#include "kernels.h"

namespace megalodon::bindings {

using Kernels = cuda::KernelTable;
using Queue = std::uintptr_t;  // a cudaStream_t as frameworks hand it out

inline constexpr DeviceType kDevice = DeviceType::cuda;
inline constexpr const char* kQueueName = "stream";

inline const Kernels& kernels() { return cuda::kernels(); }

inline void check_queue(const char*, Queue) {}

// Queues the kernels of an operator, without the GIL, on workspace from allocate(bytes).
template <class Op, class Shape, class Allocate, class Arrays>
void execute(const char* name, const cuda::Entry<Op, Shape>& entry, const Op& op, const Shape& shape,
             Queue stream, const Allocate& allocate, const Arrays&) {
  if (!entry) {
    throw Error(Error::Kind::value, name, "device", "a CPU, since this operator has no CUDA kernel yet",
                "a CUDA device");
  }
  const std::int64_t bytes = entry.workspace_bytes(op, shape);
  const cuda::Workspace workspace{bytes > 0 ? allocate(bytes) : nullptr, bytes};
  const pybind11::gil_scoped_release release;
  entry.run(op, shape, reinterpret_cast<cuda::Stream>(stream), workspace);
}

}  // namespace megalodon::bindings
