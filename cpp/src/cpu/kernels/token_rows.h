// The tokens of one block as rows of the storage type: in place where a row is whole vectors, else copied
// beside a spare vector.
#pragma once

#include "cpu/kernels/arena.h"
#include "cpu/kernels/groups.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/tile.h"

namespace megalodon::cpu::MEGALODON_TARGET {

inline constexpr std::int64_t kMostBlockTokens = 64;

template <class T>
inline T* token_row(const Tensor& array, const Sequence& sequence, std::int64_t token) {
  return array.as<T>() + sequence.row * array.stride(0) + position_of(sequence, token) * array.stride(1);
}

// How many rows ahead to bring rows of `width` elements from memory: as far as 8 KiB last, which is about
// what a core reads in the time that memory takes to answer.
template <class T>
inline std::int64_t rows_in_flight(std::int64_t width) {
  constexpr std::int64_t kBytes = 8 << 10;
  return clamp(kBytes / (width * static_cast<std::int64_t>(sizeof(T))), 1, kMostBlockTokens);
}

template <class T>
struct InputRows {
  T* buffer;  // rows of `pitch` elements
  std::int64_t pitch;
  const T* row[kMostBlockTokens];
  std::int64_t last, step;

  // Tokens [first, first + tokens) of one of `inputs` arrays that are walked together.
  void read(const Tensor& array, const Sequence& sequence, std::int64_t first, std::int64_t tokens,
            const Groups& groups, int inputs) {
    last = tokens - 1;
    step = rows_in_flight<T>(groups.width() * inputs);
    const bool in_place = groups.in_whole_vectors(kLanes<Acc<T>>);
    for (std::int64_t t = 0; t < tokens; ++t) {
      row[t] = token_row<const T>(array, sequence, first + t);
      if (in_place) continue;
      T* copy = buffer + t * pitch;
      std::memset(copy, 0, static_cast<std::size_t>(pitch) * sizeof(T));
      std::memcpy(copy, row[t], static_cast<std::size_t>(groups.width()) * sizeof(T));
      row[t] = copy;
    }
  }

  // What to bring while row t is worked on.
  const T* ahead(std::int64_t t) const { return row[t + step < last ? t + step : last]; }
};

// Where a thread keeps its copies of rows, if rows are not whole vectors.
template <class T>
class RowSpace {
 public:
  RowSpace(Arena<Acc<T>>& arena, const Groups& groups)
      : arena_(arena),
        pitch_(groups.in_whole_vectors(kLanes<Acc<T>>) ? 0 : row_pitch<Acc<T>>(groups.width())) {}

  InputRows<T> input(std::int64_t tokens) const { return {take(tokens), pitch_, {}}; }
  T* output() const { return take(1); }

 private:
  T* take(std::int64_t rows) const { return reinterpret_cast<T*>(arena_.take(rows * pitch_)); }

  Arena<Acc<T>>& arena_;
  const std::int64_t pitch_;
};

// Rows that are not whole vectors are copied in pieces, and in cache.
inline bool goes_past_cache(const Tensor& array, const Groups& groups) {
  return groups.in_whole_vectors(lanes_of(array.dtype)) && goes_past_cache(array);
}

// f(row) fills the row of a token of the output.
template <class T, class F>
inline void write_token(const Tensor& array, const Sequence& sequence, std::int64_t token,
                        const Groups& groups, T* buffer, const F& f) {
  T* row = token_row<T>(array, sequence, token);
  if (groups.in_whole_vectors(kLanes<Acc<T>>)) return f(row);
  f(buffer);
  std::memcpy(row, buffer, static_cast<std::size_t>(groups.width()) * sizeof(T));
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
