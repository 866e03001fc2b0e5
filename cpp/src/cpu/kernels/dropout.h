// DropKey: scores that are left out of the softmax at random.
#pragma once

#include "cpu/kernels/attention_chunks.h"
#include "megalodon/math/philox.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// The pattern of one head of one chunk.
class Dropout {
 public:
  Dropout(const Attention& op, const Chunk& chunk, std::int64_t head)
      : threshold_(math::dropout_threshold(op.dropout_p)),
        key0_(static_cast<std::uint32_t>(op.seed)),
        key1_(static_cast<std::uint32_t>(op.seed >> 32)),
        start_(static_cast<std::uint32_t>(chunk.start)),
        head_(static_cast<std::uint32_t>(head)),
        row_(static_cast<std::uint32_t>(chunk.sequence)) {}

  bool active() const { return threshold_ > 0; }

  // Sets scores[i], that of query + i and key, to -inf where it is dropped. Both are positions in the chunk.
  template <class A>
  void drop(A* scores, std::int64_t key, std::int64_t query, std::int64_t count) const {
    const std::uint32_t s = start_ + static_cast<std::uint32_t>(key);
    const std::uint32_t t = start_ + static_cast<std::uint32_t>(query);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint32_t word =
          math::philox4x32_10(s, t + static_cast<std::uint32_t>(i), head_, row_, key0_, key1_);
      scores[i] = word < threshold_ ? -static_cast<A>(__builtin_inff()) : scores[i];
    }
  }

 private:
  std::uint32_t threshold_, key0_, key1_, start_, head_, row_;
};

}  // namespace megalodon::cpu::MEGALODON_TARGET
