#include "megalodon/check.h"

#include <cmath>

namespace megalodon {

Check::Check(const char* op, const char* argument, const Tensor& first)
    : op_(op), first_argument_(argument), first_(first) {
  location(argument, first);
  if (!is_floating(first.dtype)) {
    fail_type(argument, "float32, float64, bfloat16 or float16", name(first.dtype));
  }
}

void Check::activation(const char* argument, const Tensor& tensor,
                       std::initializer_list<std::int64_t> sizes) const {
  location(argument, tensor);
  dtype(argument, tensor, first_.dtype);
  shape(argument, tensor, sizes);
  if (tensor.numel() > 0 && tensor.size(-1) > 1 && tensor.stride(-1) != 1) {
    fail(argument, "a dense last axis", "stride " + std::to_string(tensor.stride(-1)));
  }
}

void Check::parameter(const char* argument, const Tensor& tensor,
                      std::initializer_list<std::int64_t> sizes) const {
  exact(argument, tensor, parameter_dtype(first_.dtype), sizes);
}

void Check::exact(const char* argument, const Tensor& tensor, DType expected,
                  std::initializer_list<std::int64_t> sizes) const {
  location(argument, tensor);
  dtype(argument, tensor, expected);
  shape(argument, tensor, sizes);
  contiguous(argument, tensor);
}

void Check::same_shape(const char* argument, const Tensor& tensor, const Tensor& like) const {
  location(argument, tensor);
  dtype(argument, tensor, like.dtype);
  bool same = tensor.rank == like.rank;
  for (int axis = 0; same && axis < tensor.rank; ++axis) same = tensor.size(axis) == like.size(axis);
  if (!same) fail(argument, "shape " + shape_string(like), shape_string(tensor));
  contiguous(argument, tensor);
}

void Check::contiguous(const char* argument, const Tensor& tensor) const {
  if (!tensor.is_contiguous()) fail(argument, "a contiguous array", "a strided one");
}

void Check::together(const char* argument, const Tensor& tensor, const char* other_argument,
                     const Tensor& other) const {
  if (tensor.defined() == other.defined()) return;
  const char* given = tensor.defined() ? argument : other_argument;
  const char* missing = tensor.defined() ? other_argument : argument;
  fail(missing, "an array, because " + std::string(given) + " is given", "None");
}

void Check::positive(const char* argument, double value) const {
  if (!(std::isfinite(value) && value > 0)) fail(argument, "a finite number > 0", std::to_string(value));
}

void Check::finite(const char* argument, double value) const {
  if (!std::isfinite(value)) fail(argument, "a finite number", std::to_string(value));
}

void Check::range(const char* argument, std::int64_t value, std::int64_t low, std::int64_t high) const {
  if (value >= low && value <= high) return;
  const std::string expected =
      high == INT64_MAX ? "an integer >= " + std::to_string(low)
                        : "an integer in [" + std::to_string(low) + ", " + std::to_string(high) + "]";
  fail(argument, expected, std::to_string(value));
}

void Check::fail(const char* argument, const std::string& expected, const std::string& got) const {
  throw Error(Error::Kind::value, op_, argument, expected, got);
}

void Check::fail_type(const char* argument, const std::string& expected, const std::string& got) const {
  throw Error(Error::Kind::type, op_, argument, expected, got);
}

void Check::location(const char* argument, const Tensor& tensor) const {
  if (!tensor.defined()) fail_type(argument, "an array", "None");
  if (!(tensor.device == first_.device)) {
    fail(argument, "an array on " + device_string(first_.device) + " like " + first_argument_,
         device_string(tensor.device));
  }
  if (tensor.numel() == 0) return;
  if (tensor.data == nullptr) fail(argument, "an array with memory", "a freed array");
  if (!tensor.is_aligned())
    fail(argument, "aligned memory", "an address that is no multiple of the element size");
}

void Check::dtype(const char* argument, const Tensor& tensor, DType expected) const {
  if (tensor.dtype == expected) return;
  fail_type(argument, std::string(name(expected)) + " beside " + name(first_.dtype) + " " + first_argument_,
            name(tensor.dtype));
}

void Check::shape(const char* argument, const Tensor& tensor,
                  std::initializer_list<std::int64_t> sizes) const {
  bool matches = tensor.rank == static_cast<int>(sizes.size());
  std::string expected = "(";
  int axis = 0;
  for (const std::int64_t size : sizes) {
    if (matches) matches = size < 0 ? tensor.size(axis) >= 1 : tensor.size(axis) == size;
    expected += (axis > 0 ? ", " : "") + (size < 0 ? std::string(">=1") : std::to_string(size));
    ++axis;
  }
  if (!matches) fail(argument, "shape " + expected + (axis == 1 ? ",)" : ")"), shape_string(tensor));
}

}  // namespace megalodon
