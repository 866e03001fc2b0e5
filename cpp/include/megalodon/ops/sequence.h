// What all sequence operators share: how a (B, L, ...) array falls into independent sequences.
#pragma once

#include <cstdint>

#include "megalodon/check.h"
#include "megalodon/tensor.h"

namespace megalodon {

// Either packed documents (cu_seqlens, with B = 1) or a padded batch (padding_mask), or neither.
struct SequenceInputs {
  Tensor cu_seqlens;    // int32 or int64 (n + 1,): 0 = first, non-decreasing, L = last
  Tensor padding_mask;  // bool (B, L), true where the position is padding
};

struct SequenceShape {
  std::int64_t batch = 0;   // B
  std::int64_t length = 0;  // L
  std::int64_t count = 0;   // rows of every state: B, or n when packed
};

SequenceShape validate(const Check& check, const SequenceInputs& inputs, std::int64_t batch,
                       std::int64_t length);

}  // namespace megalodon
