// The vocabulary in which every operator states what it accepts. Each function throws megalodon::Error.
#pragma once

#include <initializer_list>
#include <string>

#include "megalodon/error.h"
#include "megalodon/tensor.h"

namespace megalodon {

class Check {
 public:
  // `first` is the argument that fixes the activation type and the device for all others.
  Check(const char* op, const char* argument, const Tensor& first);

  // An activation: same dtype and device as the first argument, the given shape; -1 accepts any size >= 1.
  // The last axis is dense, all others may have any strides. Everything but an activation is contiguous.
  void activation(const char* argument, const Tensor& tensor,
                  std::initializer_list<std::int64_t> shape) const;
  // A parameter, statistic or state: parameter_dtype of the activations.
  void parameter(const char* argument, const Tensor& tensor, std::initializer_list<std::int64_t> shape) const;
  // An integer or bool array with the given dtype.
  void exact(const char* argument, const Tensor& tensor, DType dtype,
             std::initializer_list<std::int64_t> shape) const;
  void same_shape(const char* argument, const Tensor& tensor, const Tensor& like) const;
  void contiguous(const char* argument, const Tensor& tensor) const;
  // Both given or both absent.
  void together(const char* argument, const Tensor& tensor, const char* other_argument,
                const Tensor& other) const;

  void positive(const char* argument, double value) const;  // finite and > 0
  void finite(const char* argument, double value) const;
  void range(const char* argument, std::int64_t value, std::int64_t low,
             std::int64_t high) const;  // [low, high]

  [[noreturn]] void fail(const char* argument, const std::string& expected, const std::string& got) const;
  [[noreturn]] void fail_type(const char* argument, const std::string& expected,
                              const std::string& got) const;

 private:
  void location(const char* argument, const Tensor& tensor) const;
  void dtype(const char* argument, const Tensor& tensor, DType expected) const;
  void shape(const char* argument, const Tensor& tensor, std::initializer_list<std::int64_t> shape) const;

  const char* op_;
  const char* first_argument_;
  const Tensor& first_;
};

}  // namespace megalodon
