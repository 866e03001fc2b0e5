#include "bindings.h"

namespace megalodon::bindings {
namespace {

// Whether both are the same elements in the same order; both are contiguous where one of them is.
bool same_array(const Tensor& a, const Tensor& b) {
  return a.data == b.data && a.dtype == b.dtype && a.rank == b.rank && a.sizes == b.sizes &&
         a.strides == b.strides;
}

}  // namespace

Call::Call(const char* op, const Frontend& frontend, Queue queue)
    : op_(op), frontend_(frontend), queue_(queue) {
  check_queue(op, queue);
}

Tensor Call::read(const char* argument, py::handle array, bool strided) {
  if (first_argument_ == nullptr) first_argument_ = argument;
  if (array.is_none()) return {};
  inputs_.append(array);
  const Tensor tensor = frontend_.read_directly(array, strided);
  if (!tensor.defined()) return frontend_.read(op_, argument, first_argument_, array, strided, owners_);
  if (direct_count_ < direct_.size()) direct_[direct_count_++] = {array, tensor};
  return tensor;
}

Tensor Call::required_input(const char* argument, py::handle array) {
  if (array.is_none()) throw Error(Error::Kind::type, op_, argument, "an array", "None");
  return input(argument, array);
}

Tensor Call::output(const char* argument, DType dtype, std::initializer_list<std::int64_t> sizes) {
  return output(argument, dtype, static_cast<int>(sizes.size()), sizes.begin());
}

Tensor Call::output_like(const char* argument, const Tensor& like) {
  if (!like.defined()) return {};
  for (std::size_t i = 0; i < direct_count_ && like.is_contiguous(); ++i) {
    if (!same_array(direct_[i].tensor, like)) continue;
    py::object array;
    const Tensor tensor = frontend_.allocate_like(op_, argument, like, direct_[i].array, array);
    outputs_.append(std::move(array));
    return tensor;
  }
  return output(argument, like.dtype, like.rank, like.sizes.data());
}

Tensor Call::output(const char* argument, DType dtype, int rank, const std::int64_t* sizes) {
  py::object array;
  const Tensor tensor = frontend_.allocate(op_, argument, dtype, rank, sizes, array);
  outputs_.append(std::move(array));
  return tensor;
}

Tensor Call::output_in_place(const char* argument, py::handle array, const Tensor& input) {
  if (!input.writeable) {
    throw Error(Error::Kind::value, op_, argument, "a writeable array to donate", "a read-only one");
  }
  auto holder = py::reinterpret_borrow<py::object>(array);
  for (const py::handle description : owners_) {
    const auto parts = py::reinterpret_borrow<py::tuple>(description);
    if (PyLong_AsVoidPtr(parts[1].ptr()) == input.data) holder = parts[0];
  }
  outputs_.append(std::move(holder));
  return input;
}

void* Call::workspace(std::int64_t bytes) {
  const std::int64_t size = bytes / 8;
  py::object array;
  const Tensor tensor = frontend_.allocate(op_, "workspace", DType::int64, 1, &size, array);
  owners_.append(std::move(array));
  return tensor.data;
}

void register_frontend(py::module_& module) {
  py::class_<Frontend>(module, "Frontend", "An array framework, as its module in frontends describes it.")
      .def(py::init<py::type, py::function, py::function, const py::tuple&, py::object>(),
           py::arg("array_type"), py::arg("describe"), py::arg("allocate"),
           py::arg("direct_types") = py::tuple(), py::arg("allocate_like") = py::none());
}

}  // namespace megalodon::bindings
