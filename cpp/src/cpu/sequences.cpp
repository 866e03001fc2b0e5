#include "cpu/sequences.h"

#include <algorithm>

namespace megalodon::cpu {
namespace {

std::int64_t offset_at(const Tensor& cu_seqlens, std::int64_t i) {
  const std::int64_t at = i * cu_seqlens.stride(0);
  return cu_seqlens.dtype == DType::int32 ? cu_seqlens.as<const std::int32_t>()[at]
                                          : cu_seqlens.as<const std::int64_t>()[at];
}

}  // namespace

SequenceList::SequenceList(const SequenceInputs& inputs, const SequenceShape& shape) {
  sequences_.resize(static_cast<std::size_t>(shape.count));
  if (inputs.cu_seqlens.defined()) {
    for (std::int64_t i = 0; i < shape.count; ++i) {
      const std::int64_t begin = offset_at(inputs.cu_seqlens, i);
      sequences_[static_cast<std::size_t>(i)] = {0, begin, offset_at(inputs.cu_seqlens, i + 1) - begin,
                                                 nullptr};
    }
    return;
  }
  const Tensor& mask = inputs.padding_mask;
  if (mask.defined()) {
    padding_ = &mask;
    positions_.resize(static_cast<std::size_t>(shape.batch * shape.length));
  }
  std::int64_t* position = positions_.data();
  for (std::int64_t row = 0; row < shape.batch; ++row) {
    Sequence& sequence = sequences_[static_cast<std::size_t>(row)];
    sequence = {row, 0, shape.length, nullptr};
    if (!mask.defined()) continue;
    sequence.position = position;
    for (std::int64_t t = 0; t < shape.length; ++t) {
      if (mask.as<const std::uint8_t>()[row * mask.stride(0) + t * mask.stride(1)] == 0) *position++ = t;
    }
    sequence.length = position - sequence.position;
  }
}

SequenceSpan SequenceList::span() const {
  std::int64_t longest = 0;
  for (const Sequence& sequence : sequences_) longest = std::max(longest, sequence.length);
  return {sequences_.data(), static_cast<std::int64_t>(sequences_.size()), longest, padding_};
}

}  // namespace megalodon::cpu
