// Element types an array may have, and what each means for accumulation.
#pragma once

#include <cstdint>

namespace megalodon {

enum class DType : std::int32_t { float32, float64, bfloat16, float16, int32, int64, boolean };

inline constexpr int kDTypeCount = 7;

const char* name(DType dtype);
std::int64_t item_size(DType dtype);

// float32, float64, bfloat16 and float16 are the types of activations.
bool is_floating(DType dtype);

// Parameters, statistics, states and accumulators: float64 beside float64 activations, float32 otherwise.
DType parameter_dtype(DType activation);

}  // namespace megalodon
