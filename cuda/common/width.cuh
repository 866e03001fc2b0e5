// Whether a kernel may move 16 bytes per thread and access.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "megalodon/tensor.h"

namespace megalodon::cuda {

template <class T>
inline constexpr int kWidest = 16 / static_cast<int>(sizeof(T));

// Every array given starts where `width` of its elements may be accessed as one.
inline bool aligned(int width, std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* tensor : tensors) {
    const auto bytes = static_cast<std::uintptr_t>(width * item_size(tensor->dtype));
    if (tensor->defined() && reinterpret_cast<std::uintptr_t>(tensor->data) % bytes != 0) return false;
  }
  return true;
}

// Calls f with the number of elements of T per access, a compile-time constant.
template <class T, class F>
void with_width(bool wide, const F& f) {
  if (wide) {
    f(std::integral_constant<int, kWidest<T>>{});
  } else {
    f(std::integral_constant<int, 1>{});
  }
}

}  // namespace megalodon::cuda
