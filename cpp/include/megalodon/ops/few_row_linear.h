// A linear map of a few rows, as a decoded token needs it: y = x weight^T + bias.
//
// Its time is that of reading the weights, which are read once for all rows. It has no backward; many rows
// are the business of a matrix product.
#pragma once

#include "megalodon/check.h"
#include "megalodon/tensor.h"

namespace megalodon {

inline constexpr std::int64_t kFewRows = 4;

struct FewRowLinear {
  Tensor x;       // (..., I), at most kFewRows rows
  Tensor weight;  // (O, I)
  Tensor bias;    // (O,) or absent; all of one type
  Tensor y;       // (..., O)
};

void validate(const FewRowLinear& op);

}  // namespace megalodon
