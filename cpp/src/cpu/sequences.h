// The independent sequences of a (B, L, ...) array, as CPU kernels walk them.
#pragma once

#include <cstdint>
#include <vector>

#include "megalodon/ops/sequence.h"

namespace megalodon::cpu {

// One batch row or packed document without its padding. Its token j sits at position[j] of the row where
// the row has padding, else at begin + j.
struct Sequence {
  std::int64_t row = 0;
  std::int64_t begin = 0;
  std::int64_t length = 0;
  const std::int64_t* position = nullptr;
};

// Plain pointers, so that kernels compiled for one instruction set instantiate no std template from it.
struct SequenceSpan {
  const Sequence* data = nullptr;
  std::int64_t count = 0;           // the rows of every state
  std::int64_t longest = 0;         // length of the longest sequence
  const Tensor* padding = nullptr;  // the mask, where positions exist that belong to no sequence
};

class SequenceList {
 public:
  SequenceList(const SequenceInputs& inputs, const SequenceShape& shape);

  SequenceSpan span() const;

 private:
  std::vector<Sequence> sequences_;
  std::vector<std::int64_t> positions_;
  const Tensor* padding_ = nullptr;
};

}  // namespace megalodon::cpu
