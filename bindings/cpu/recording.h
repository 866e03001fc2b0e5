// Calls of kernels that are run again without Python: for a CPU what a CUDA graph is for a GPU.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <vector>

#include "megalodon/tensor.h"

namespace megalodon::bindings {

namespace py = pybind11;

// Between start() and stop() every kernel that this thread calls is noted with its arrays, beside being run.
// replay() runs them in the same order on the same memory, so that inputs are what the arrays hold by then.
class Recording {
 public:
  using Kernel = std::function<void(int threads)>;

  // The one under way in this thread, or null.
  static Recording* current();

  Recording() = default;
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  void start();  // throws Error where one is under way
  void stop();
  // `arrays` hold the memory that the kernel reads and writes, unless their owner gives them other memory.
  void add(Kernel kernel, py::object arrays);
  void replay(int threads) const;

 private:
  std::vector<Kernel> kernels_;
  py::list arrays_;
};

}  // namespace megalodon::bindings
