// From the run-time type of activations to the compile-time one.
#pragma once

#include "megalodon/dtype.h"

namespace megalodon {

// Calls f with a null pointer of the type that dtype names, bfloat16 and float16 being those of the backend.
// Activations only: validate() admits no other type.
template <class BFloat16, class Float16, class F>
inline void with_activation(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float32:
      return f(static_cast<float*>(nullptr));
    case DType::float64:
      return f(static_cast<double*>(nullptr));
    case DType::bfloat16:
      return f(static_cast<BFloat16*>(nullptr));
    case DType::float16:
      return f(static_cast<Float16*>(nullptr));
    default:
      __builtin_unreachable();
  }
}

}  // namespace megalodon
