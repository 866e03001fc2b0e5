#include "megalodon/tensor.h"

namespace megalodon {

namespace {

struct TypeTraits {
  const char* name;
  std::int64_t size;
};

constexpr TypeTraits kTypes[kDTypeCount] = {{"float32", 4}, {"float64", 8}, {"bfloat16", 2}, {"float16", 2},
                                            {"int32", 4},   {"int64", 8},   {"bool", 1}};

}  // namespace

const char* name(DType dtype) { return kTypes[static_cast<int>(dtype)].name; }

std::int64_t item_size(DType dtype) { return kTypes[static_cast<int>(dtype)].size; }

bool is_floating(DType dtype) { return dtype <= DType::float16; }

DType parameter_dtype(DType activation) {
  return activation == DType::float64 ? DType::float64 : DType::float32;
}

std::int64_t Tensor::numel() const {
  std::int64_t product = 1;
  for (int axis = 0; axis < rank; ++axis) product *= size(axis);
  return product;
}

bool Tensor::is_contiguous() const {
  std::int64_t expected = 1;
  for (int axis = rank - 1; axis >= 0; --axis) {
    if (size(axis) != 1 && stride(axis) != expected) return numel() == 0;
    expected *= size(axis);
  }
  return true;
}

void Tensor::normalize_strides() {
  std::int64_t dense = 1;
  for (auto axis = static_cast<std::size_t>(rank); axis-- > 0; dense = sizes[axis] * strides[axis]) {
    if (sizes[axis] == 1) strides[axis] = dense;
  }
}

bool Tensor::is_aligned() const {
  return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(item_size(dtype)) == 0;
}

std::string shape_string(const Tensor& tensor) {
  std::string text = "(";
  for (int axis = 0; axis < tensor.rank; ++axis) {
    text += (axis > 0 ? ", " : "") + std::to_string(tensor.size(axis));
  }
  return text + (tensor.rank == 1 ? ",)" : ")");
}

std::string device_string(Device device) {
  return device.type == DeviceType::cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

}  // namespace megalodon
