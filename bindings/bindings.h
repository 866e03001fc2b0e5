// The arrays of one call of an operator, and the list of what is bound.
#pragma once

#include <array>
#include <initializer_list>

#include "backend.h"
#include "frontend.h"
#include "megalodon/error.h"

namespace megalodon::bindings {

// Reads the inputs of a call, allocates its outputs through the caller's framework, and runs its kernel
// without the GIL. The first input that is read names the framework in messages about the others.
class Call {
 public:
  Call(const char* op, const Frontend& frontend, Queue queue);

  const char* op() const { return op_; }

  // A contiguous input; absent where the array is None.
  Tensor input(const char* argument, py::handle array) { return read(argument, array, false); }
  // The same where None would mean another operator.
  Tensor required_input(const char* argument, py::handle array);
  // An activation or its cotangent, whose leading axes may have any strides.
  Tensor strided_input(const char* argument, py::handle array) { return read(argument, array, true); }

  // A new contiguous output of the given shape.
  Tensor output(const char* argument, DType dtype, std::initializer_list<std::int64_t> sizes);
  Tensor output(const char* argument, DType dtype, int rank, const std::int64_t* sizes);
  // A new contiguous output shaped like `like`; absent where `like` is absent.
  Tensor output_like(const char* argument, const Tensor& like);

  // The input that was read from `array` as an output.
  Tensor output_in_place(const char* argument, py::handle array, const Tensor& input);

  // Runs a kernel of the backend's table and returns the outputs.
  template <class Kernel, class Op, class Shape>
  py::tuple run(Kernel Kernels::* kernel, const Op& op, const Shape& shape) {
    return run(kernels().*kernel, op, shape);
  }
  // The same of a kernel that is in no table.
  template <class Kernel, class Op, class Shape>
  py::tuple run(const Kernel& kernel, const Op& op, const Shape& shape) {
    execute(
        op_, kernel, op, shape, queue_, [&](std::int64_t bytes) { return workspace(bytes); },
        [&] { return py::make_tuple(inputs_, owners_, outputs_); });
    return py::tuple(outputs_);
  }

 private:
  Tensor read(const char* argument, py::handle array, bool strided);
  // Memory for the time of the call; `bytes` is a multiple of 8.
  void* workspace(std::int64_t bytes);

  const char* op_;
  const Frontend& frontend_;
  Queue queue_;
  const char* first_argument_ = nullptr;
  struct Direct {
    py::handle array;
    Tensor tensor;
  };
  std::array<Direct, 4> direct_;  // inputs that were read directly: activations come first
  std::size_t direct_count_ = 0;
  py::list inputs_, owners_, outputs_;
};

void register_frontend(py::module_& module);
void register_dlpack(py::module_& module);
void register_runtime(py::module_& module);
void register_cema(py::module_& module);
void register_timestep_norm(py::module_& module);
void register_chunk_attention(py::module_& module);
void register_few_row_linear(py::module_& module);
void register_gate(py::module_& module);
void register_recording(py::module_& module);
void register_silu(py::module_& module);
void register_residual(py::module_& module);

}  // namespace megalodon::bindings
