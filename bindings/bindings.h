// How arrays cross the boundary between Python and the core.
//
// An array arrives as the tuple (address, dtype, device_type, device_index, writeable, shape, strides) that a
// frontend made from it, strides in elements; None is an absent array. Outputs are made by the caller's
// framework: the core calls allocate(shape, dtype), which returns (array, tuple).
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>

#include "megalodon/error.h"
#include "megalodon/tensor.h"

namespace pybind11::detail {

template <>
struct type_caster<megalodon::Tensor> {
  PYBIND11_TYPE_CASTER(megalodon::Tensor, const_name("tuple | None"));

  // Anything but such a tuple of an array on the CPU is refused, which pybind11 turns into a TypeError.
  bool load(handle source, bool) {
    value = {};
    if (source.is_none()) return true;
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 7) return false;
    const auto item = [&](int i) { return PyTuple_GET_ITEM(source.ptr(), i); };
    value.data = PyLong_AsVoidPtr(item(0));
    const long dtype = PyLong_AsLong(item(1));
    value.device.type = static_cast<megalodon::DeviceType>(PyLong_AsLong(item(2)));
    value.device.index = static_cast<std::int32_t>(PyLong_AsLong(item(3)));
    value.writeable = PyObject_IsTrue(item(4)) == 1;
    if (failed() || dtype < 0 || dtype >= megalodon::kDTypeCount) return false;
    value.dtype = static_cast<megalodon::DType>(dtype);
    return value.device.type == megalodon::DeviceType::cpu && load_axes(item(5), item(6));
  }

 private:
  bool load_axes(PyObject* shape, PyObject* strides) {
    if (!PyTuple_Check(shape) || !PyTuple_Check(strides)) return false;
    const Py_ssize_t rank = PyTuple_GET_SIZE(shape);
    if (rank > megalodon::kMaxRank || PyTuple_GET_SIZE(strides) != rank) return false;
    value.rank = static_cast<int>(rank);
    std::int64_t elements = 1;
    for (Py_ssize_t axis = 0; axis < rank; ++axis) {
      const auto at = static_cast<std::size_t>(axis);
      value.sizes[at] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, axis));
      value.strides[at] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides, axis));
      const bool counted = !__builtin_mul_overflow(elements, value.sizes[at], &elements);
      if (failed() || value.sizes[at] < 0 || !counted) return false;
    }
    return true;
  }

  // Whether a conversion above raised; forgets what it raised.
  static bool failed() {
    if (PyErr_Occurred() == nullptr) return false;
    PyErr_Clear();
    return true;
  }
};

}  // namespace pybind11::detail

namespace megalodon::bindings {

namespace py = pybind11;

// Collects the outputs of one call: allocates each through the caller's framework and hands the arrays back.
class Outputs {
 public:
  Outputs(const char* op, py::function allocate) : op_(op), allocate_(std::move(allocate)) {}

  // A new contiguous output of the given shape.
  Tensor add(const char* argument, DType dtype, std::initializer_list<std::int64_t> sizes);
  // A new contiguous output shaped like `like`; absent where `like` is absent.
  Tensor add_like(const char* argument, const Tensor& like);

  py::tuple take() const;

 private:
  Tensor add(const char* argument, DType dtype, int rank, const std::int64_t* sizes);

  const char* op_;
  py::function allocate_;
  py::list arrays_;
};

// Runs a kernel without the GIL.
template <class Kernel>
void run(const Kernel& kernel) {
  const py::gil_scoped_release release;
  kernel();
}

void register_runtime(py::module_& module);
void register_cema(py::module_& module);
void register_timestep_norm(py::module_& module);
void register_chunk_attention(py::module_& module);
void register_residual(py::module_& module);

}  // namespace megalodon::bindings
