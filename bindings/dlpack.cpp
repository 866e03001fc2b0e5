#include "dlpack.h"

#include "bindings.h"

namespace megalodon::bindings {
namespace dlpack {

std::optional<DType> dtype_of(DataType type) {
  if (type.lanes != 1) return {};
  switch (type.code * 256 + type.bits) {
    case kFloat * 256 + 32:
      return DType::float32;
    case kFloat * 256 + 64:
      return DType::float64;
    case kBfloat * 256 + 16:
      return DType::bfloat16;
    case kFloat * 256 + 16:
      return DType::float16;
    case kInt * 256 + 32:
      return DType::int32;
    case kInt * 256 + 64:
      return DType::int64;
    case kBool * 256 + 8:
      return DType::boolean;
    default:
      return {};
  }
}

}  // namespace dlpack

namespace {

constexpr const char* kCapsuleName = "dltensor";

// What a capsule of that name points to begins with the array; it belongs to the capsule.
py::object describe(py::handle capsule) {
  if (PyCapsule_IsValid(capsule.ptr(), kCapsuleName) == 0) return py::none();
  const auto* array = static_cast<const dlpack::Array*>(PyCapsule_GetPointer(capsule.ptr(), kCapsuleName));
  const std::optional<DType> dtype = dlpack::dtype_of(array->dtype);
  if (!dtype) return py::none();
  py::tuple shape(array->rank), strides(array->rank);
  std::int64_t dense = 1;  // the stride that makes an axis contiguous, where the producer gives none
  for (int axis = array->rank - 1; axis >= 0; --axis) {
    const auto at = static_cast<std::size_t>(axis);
    shape[at] = array->shape[at];
    strides[at] = array->strides != nullptr ? array->strides[at] : dense;
    dense *= array->shape[at];
  }
  const auto address = reinterpret_cast<std::uintptr_t>(array->data) + array->byte_offset;
  return py::make_tuple(address, static_cast<int>(*dtype), array->device.type, array->device.index, true,
                        shape, strides);
}

}  // namespace

void register_dlpack(py::module_& module) {
  module.def("describe_dlpack", &describe, py::arg("capsule"),
             "Address, dtype, device type and index, writeable, shape and strides of an array whose capsule "
             "stays its owner; None for a dtype that no operator has.");
}

}  // namespace megalodon::bindings
