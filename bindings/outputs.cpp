#include "bindings.h"

namespace megalodon::bindings {

Tensor Outputs::add(const char* argument, DType dtype, std::initializer_list<std::int64_t> sizes) {
  return add(argument, dtype, static_cast<int>(sizes.size()), sizes.begin());
}

Tensor Outputs::add_like(const char* argument, const Tensor& like) {
  return like.defined() ? add(argument, like.dtype, like.rank, like.sizes.data()) : Tensor{};
}

Tensor Outputs::add(const char* argument, DType dtype, int rank, const std::int64_t* sizes) {
  py::tuple shape(rank);
  for (int axis = 0; axis < rank; ++axis) shape[static_cast<std::size_t>(axis)] = sizes[axis];
  const py::object pair = allocate_(shape, static_cast<int>(dtype));
  const std::string expected = std::string("a writeable contiguous aligned ") + name(dtype) +
                               " array of the requested shape from allocate";
  py::detail::make_caster<Tensor> made;
  if (!PyTuple_Check(pair.ptr()) || PyTuple_GET_SIZE(pair.ptr()) != 2 ||
      !made.load(PyTuple_GET_ITEM(pair.ptr(), 1), false)) {
    throw Error(Error::Kind::type, op_, argument, expected, "no pair of an array and its description");
  }
  const Tensor tensor = made;
  bool fits = tensor.rank == rank && tensor.dtype == dtype && tensor.is_contiguous() && tensor.is_aligned() &&
              (tensor.data != nullptr || tensor.numel() == 0);
  for (int axis = 0; fits && axis < rank; ++axis) fits = tensor.size(axis) == sizes[axis];
  if (!fits) throw Error(Error::Kind::value, op_, argument, expected, shape_string(tensor));
  if (!tensor.writeable) throw Error(Error::Kind::value, op_, argument, expected, "a read-only array");
  arrays_.append(py::handle(PyTuple_GET_ITEM(pair.ptr(), 0)));
  return tensor;
}

py::tuple Outputs::take() const { return py::tuple(arrays_); }

}  // namespace megalodon::bindings
