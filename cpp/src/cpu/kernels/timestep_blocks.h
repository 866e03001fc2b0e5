// How the work of timestep normalization falls into blocks of tokens, which threads take in turn.
#pragma once

#include "cpu/kernels/token_rows.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// Tokens [first, first + tokens) of a sequence.
struct TokenBlock {
  std::int64_t sequence;
  std::int64_t first, tokens;
  std::int64_t index;  // where the kept statistics of its first token are, in tokens
  bool last;           // of its sequence
};

// The blocks of all sequences, and as many threads as they are worth.
class TokenBlocks {
 public:
  // A block takes `bytes_per_token` of cache for each of its tokens.
  TokenBlocks(const TimestepNorm& op, const SequenceSpan& sequences, std::int64_t bytes_per_token,
              int threads)
      : parts_(threads_for_elements(threads, op.x.numel())),
        most_tokens_(tokens_of_block(op.x.size(0) * op.x.size(1), bytes_per_token, parts_)),
        blocks_(count_blocks(sequences, most_tokens_)) {
    TokenBlock* block = blocks_.data();
    for (std::int64_t s = 0; s < sequences.count; ++s) {
      const Sequence& sequence = sequences.data[s];
      const std::int64_t index = sequence.row * op.x.size(1) + sequence.begin;
      for (std::int64_t first = 0; first < sequence.length; first += most_tokens_) {
        const std::int64_t tokens = clamp(sequence.length - first, 0, most_tokens_);
        *block++ = {s, first, tokens, index + first, first + tokens == sequence.length};
      }
    }
  }

  std::int64_t count() const { return blocks_.size(); }
  std::int64_t most_tokens() const { return most_tokens_; }
  int parts() const { return parts_; }
  const TokenBlock& operator[](std::int64_t i) const { return blocks_.data()[i]; }

 private:
  static constexpr std::int64_t kBlockBytes = 256 << 10, kLeastTokens = 16, kBlocksPerThread = 4;

  // Few enough that every thread has several blocks, where there are threads.
  static std::int64_t tokens_of_block(std::int64_t all, std::int64_t bytes_per_token, int parts) {
    const std::int64_t tokens = clamp(kBlockBytes / bytes_per_token, kLeastTokens, kMostBlockTokens);
    return parts == 1 ? tokens : clamp(all / (kBlocksPerThread * parts), 1, tokens);
  }

  static std::int64_t count_blocks(const SequenceSpan& sequences, std::int64_t tokens) {
    std::int64_t count = 0;
    for (std::int64_t s = 0; s < sequences.count; ++s) {
      count += (sequences.data[s].length + tokens - 1) / tokens;
    }
    return count;
  }

  int parts_;
  std::int64_t most_tokens_;
  Scratch<TokenBlock> blocks_;
};

// The row of an output that will be written after that of the block's token t.
template <class T>
inline const T* output_ahead(const Tensor& array, const Sequence& sequence, const TokenBlock& block,
                             std::int64_t t) {
  return token_row<const T>(array, sequence, block.first + clamp(t + 1, 0, block.tokens - 1));
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
