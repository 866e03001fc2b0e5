#include "frontend.h"

#include <optional>
#include <string>

#include "backend.h"
#include "megalodon/error.h"

namespace megalodon::bindings {
namespace {

constexpr const char* kTableAttribute = "__dlpack_c_exchange_api__";

// The last address of the array's memory plus one; no stride is negative.
std::uintptr_t end_of(const Tensor& tensor) {
  std::int64_t elements = tensor.numel() == 0 ? 0 : 1;
  for (int axis = 0; elements > 0 && axis < tensor.rank; ++axis) {
    elements += (tensor.size(axis) - 1) * tensor.stride(axis);
  }
  return reinterpret_cast<std::uintptr_t>(tensor.data) +
         static_cast<std::uintptr_t>(elements * item_size(tensor.dtype));
}

bool dense_last_axis(const Tensor& tensor) {
  return tensor.rank > 0 && (tensor.stride(-1) == 1 || tensor.size(-1) == 1);
}

// The method's result, for a method without arguments.
py::object call(py::handle object, const py::str& method) {
  return py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object.ptr(), method.ptr()));
}

// The integer that the method gives; 0 where it raises.
std::uintptr_t integer(py::handle object, const py::str& method) {
  const py::object result = call(object, method);
  return result ? reinterpret_cast<std::uintptr_t>(PyLong_AsVoidPtr(result.ptr())) : 0;
}

// Reads descriptions; every function answers false where Python's object is not what it must be.
struct Description {
  Tensor tensor;

  bool read(py::handle source) {
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 8) return false;
    const auto item = [&](int i) { return PyTuple_GET_ITEM(source.ptr(), i); };
    tensor.data = PyLong_AsVoidPtr(item(1));
    const long dtype = PyLong_AsLong(item(2));
    tensor.device.type = static_cast<DeviceType>(PyLong_AsLong(item(3)));
    tensor.device.index = static_cast<std::int32_t>(PyLong_AsLong(item(4)));
    tensor.writeable = PyObject_IsTrue(item(5)) == 1;
    if (failed() || dtype < 0 || dtype >= kDTypeCount) return false;
    tensor.dtype = static_cast<DType>(dtype);
    return tensor.device.type == kDevice && read_axes(item(6), item(7));
  }

 private:
  bool read_axes(PyObject* shape, PyObject* strides) {
    if (!PyTuple_Check(shape) || !PyTuple_Check(strides)) return false;
    const Py_ssize_t rank = PyTuple_GET_SIZE(shape);
    if (rank > kMaxRank || PyTuple_GET_SIZE(strides) != rank) return false;
    tensor.rank = static_cast<int>(rank);
    std::int64_t elements = 1;
    for (Py_ssize_t axis = 0; axis < rank; ++axis) {
      const auto at = static_cast<std::size_t>(axis);
      tensor.sizes[at] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, axis));
      tensor.strides[at] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides, axis));
      const bool counted = !__builtin_mul_overflow(elements, tensor.sizes[at], &elements);
      if (failed() || tensor.sizes[at] < 0 || !counted) return false;
    }
    tensor.normalize_strides();
    return true;
  }

  // Whether a conversion above raised; forgets what it raised.
  static bool failed() {
    if (PyErr_Occurred() == nullptr) return false;
    PyErr_Clear();
    return true;
  }
};

std::string type_name(py::handle type) {
  return py::str(type.attr("__module__")).cast<std::string>() + "." +
         py::str(type.attr("__qualname__")).cast<std::string>();
}

}  // namespace

Frontend::Frontend(py::type array_type, py::function describe, py::function allocate,
                   const py::tuple& direct_types, py::object allocate_like)
    : array_type_(std::move(array_type)),
      describe_(std::move(describe)),
      allocate_(std::move(allocate)),
      direct_types_(direct_types),
      allocate_like_(std::move(allocate_like)) {
  if (direct_types_.empty()) return;
  if (PyCallable_Check(allocate_like_.ptr()) == 0) {
    throw py::type_error("allocate_like: expected a function beside direct_types");
  }
  const auto capsule = py::reinterpret_borrow<py::capsule>(direct_types_[0].attr(kTableAttribute));
  table_ = capsule.get_pointer<const dlpack::ExchangeTable>();
  while (table_ != nullptr && table_->major != dlpack::kMajorVersion) table_ = table_->previous;
  if (table_ == nullptr || table_->view == nullptr) direct_types_ = py::tuple();
}

Tensor Frontend::read_directly(py::handle array, bool strided, bool fresh) const {
  bool direct = false;
  for (const py::handle type : direct_types_) direct |= type.ptr() == py::type::handle_of(array).ptr();
  if (!direct) return {};
  dlpack::Array view;
  if (table_->view(array.ptr(), &view) != 0) {
    PyErr_Clear();
    return {};
  }
  const std::optional<DType> dtype = dlpack::dtype_of(view.dtype);
  const bool here = view.device.type == static_cast<std::int32_t>(kDevice);
  if (!dtype || !here || view.rank > kMaxRank) return {};
  Tensor tensor;
  tensor.data = static_cast<char*>(view.data) + view.byte_offset;
  tensor.dtype = *dtype;
  tensor.device = {kDevice, view.device.index};
  tensor.rank = view.rank;
  tensor.writeable = true;
  for (std::size_t axis = 0; axis < static_cast<std::size_t>(view.rank); ++axis) {
    tensor.sizes[axis] = view.shape[axis];
    tensor.strides[axis] = view.strides[axis];
  }
  tensor.normalize_strides();
  const bool walkable = tensor.is_contiguous() || (strided && dense_last_axis(tensor));
  return walkable && tensor.is_aligned() && (fresh || is_plain(array, tensor)) ? tensor : Tensor{};
}

// What DLPack does not tell of a torch tensor: that its values are the negatives of those in memory, or that
// its storage was freed or cut short since.
bool Frontend::is_plain(py::handle array, const Tensor& tensor) const {
  if (call(array, is_neg_).ptr() != Py_False) return false;
  const py::object storage = call(array, untyped_storage_);
  return storage && end_of(tensor) <= integer(storage, data_ptr_) + integer(storage, nbytes_);
}

Tensor Frontend::read(const char* op, const char* argument, const char* first_argument, py::handle array,
                      bool strided, py::list& owners) const {
  if (!py::isinstance(array, array_type_)) {
    throw Error(Error::Kind::type, op, argument, type_name(array_type_) + " like " + first_argument,
                type_name(py::type::handle_of(array)));
  }
  py::object made = describe_(op, argument, py::reinterpret_borrow<py::object>(array), strided);
  Description description;
  if (!description.read(made)) {
    throw Error(Error::Kind::type, op, argument, "a description of an array on the CPU from describe",
                py::repr(made).cast<std::string>());
  }
  owners.append(std::move(made));
  return description.tensor;
}

Tensor Frontend::allocate(const char* op, const char* argument, DType dtype, int rank,
                          const std::int64_t* sizes, py::object& array) const {
  py::tuple shape(rank);
  for (int axis = 0; axis < rank; ++axis) shape[static_cast<std::size_t>(axis)] = sizes[axis];
  array = allocate_(shape, static_cast<int>(dtype));
  return checked_output(op, argument, dtype, rank, sizes, array);
}

Tensor Frontend::allocate_like(const char* op, const char* argument, const Tensor& like, py::handle source,
                               py::object& array) const {
  array = allocate_like_(source);
  return checked_output(op, argument, like.dtype, like.rank, like.sizes.data(), array);
}

Tensor Frontend::checked_output(const char* op, const char* argument, DType dtype, int rank,
                                const std::int64_t* sizes, py::object& array) const {
  const auto refuse = [&](Error::Kind kind, const std::string& got) {
    throw Error(kind, op, argument,
                std::string("a writeable contiguous aligned ") + name(dtype) +
                    " array of the requested shape from allocate or allocate_like",
                got);
  };
  Tensor tensor = read_directly(array, false, true);
  if (Description description; !tensor.defined() && description.read(array)) {
    tensor = description.tensor;
    array = py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(array.ptr(), 0));
  }
  if (!tensor.defined()) refuse(Error::Kind::type, "none");
  bool fits = tensor.rank == rank && tensor.dtype == dtype && tensor.is_contiguous() && tensor.is_aligned() &&
              (tensor.data != nullptr || tensor.numel() == 0);
  for (int axis = 0; fits && axis < rank; ++axis) fits = tensor.size(axis) == sizes[axis];
  if (!fits) refuse(Error::Kind::value, shape_string(tensor));
  if (!tensor.writeable) refuse(Error::Kind::value, "a read-only array");
  return tensor;
}

}  // namespace megalodon::bindings
