// The tokens of one tile as rows of the accumulation type: in place where that is what the array holds, else
// converted in a buffer.
#pragma once

#include "cpu/kernels/groups.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/tile.h"

namespace megalodon::cpu::MEGALODON_TARGET {

inline constexpr std::int64_t kMostTileTokens = 64;

// Whether rows of the range can be used where they lie: they hold A, and no vector reaches out of them.
template <class A>
inline bool usable_in_place(const Tensor& array, const GroupRange& range) {
  return array.dtype == (sizeof(A) == 8 ? DType::float64 : DType::float32) &&
         range.in_whole_vectors(kLanes<A>);
}

template <class T>
inline T* token_row(const Tensor& array, const Sequence& sequence, std::int64_t token,
                    const GroupRange& range) {
  return array.as<T>() + sequence.row * array.stride(0) + position_of(sequence, token) * array.stride(1) +
         range.channel();
}

// A token that will be wanted soon: prefetch(c) starts bringing in its channels from c on. A kernel that
// prefetches a token of the next tile for each one of this tile seldom waits for memory.
class Ahead {
 public:
  Ahead() = default;
  // The sequence's token nearest to `token`.
  Ahead(const Tensor& array, const Sequence& sequence, std::int64_t token, const GroupRange& range)
      : item_size_(item_size(array.dtype)) {
    const std::int64_t position = position_of(sequence, clamp(token, 0, sequence.length - 1));
    first_ = array.as<const char>() +
             (sequence.row * array.stride(0) + position * array.stride(1) + range.channel()) * item_size_;
  }

  void prefetch(std::int64_t channel) const { __builtin_prefetch(first_ + channel * item_size_); }

 private:
  const char* first_ = nullptr;
  std::int64_t item_size_ = 0;
};

template <class A>
struct InputRows {
  A* buffer;  // tokens rows of `pitch` elements
  std::int64_t pitch;
  const A* row[kMostTileTokens];
  Ahead ahead[kMostTileTokens];

  // Tokens [first, first + tokens); `next` is the first token of the tile after this one.
  void read(const Tensor& array, const Sequence& sequence, std::int64_t first, std::int64_t tokens,
            std::int64_t next, const GroupRange& range) {
    const bool in_place = usable_in_place<A>(array, range);
    if (!in_place) load_tile(array, sequence, first, tokens, range.channel(), range.width(), buffer, pitch);
    for (std::int64_t t = 0; t < tokens; ++t) {
      row[t] = in_place ? token_row<const A>(array, sequence, first + t, range) : buffer + t * pitch;
      ahead[t] = Ahead(array, sequence, next + t, range);
    }
  }
};

// f(row) fills the row of a token of the output.
template <class A, class F>
inline void write_token(const Tensor& array, const Sequence& sequence, std::int64_t token,
                        const GroupRange& range, A* buffer, std::int64_t pitch, const F& f) {
  if (usable_in_place<A>(array, range)) return f(token_row<A>(array, sequence, token, range));
  f(buffer);
  store_tile(array, sequence, token, 1, range.channel(), range.width(), buffer, pitch);
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
