// The queries that a job works on at a time.
#pragma once

#include "cpu/kernels/attention_rows.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// Consecutive rows of a chunk, row r being position first + r, in panels of kPanel rows. `first` is a
// multiple of kBlockRows, so that causal diagonals meet blocks of registers; the first `idle` rows are no
// queries of this call.
template <class A>
struct QueryTile {
  std::int64_t first = 0;
  std::int64_t rows = 0;
  std::int64_t idle = 0;

  std::int64_t keys() const { return first + rows; }  // that the last row sees
  std::int64_t panels() const { return (rows + kPanel<A> - 1) / kPanel<A>; }
  std::int64_t padded_rows() const { return panels() * kPanel<A>; }
  std::int64_t panel_first(std::int64_t panel) const { return first + panel * kPanel<A>; }
  std::int64_t panel_rows(std::int64_t panel) const { return smaller(kPanel<A>, rows - panel * kPanel<A>); }
  std::int64_t panel_keys(std::int64_t panel) const {
    return smaller(keys(), panel_first(panel) + kPanel<A>);
  }
};

inline std::int64_t first_tile(const Chunk& chunk) { return chunk.first_query / kBlockRows * kBlockRows; }

inline std::int64_t tile_count(const Chunk& chunk, std::int64_t tile_rows) {
  if (chunk.first_query >= chunk.keys) return 0;
  return (chunk.keys - first_tile(chunk) - 1) / tile_rows + 1;
}

template <class A>
inline QueryTile<A> tile_at(const Chunk& chunk, std::int64_t index, std::int64_t tile_rows) {
  const std::int64_t first = first_tile(chunk) + index * tile_rows;
  return {first, smaller(tile_rows, chunk.keys - first), larger(0, chunk.first_query - first)};
}

// Packs columns [column, column + kPanel) of the tile's rows of q or dy, times scale:
// to[padded_rows][kPanel]. Rows that are no queries are 0, and so are columns past the last up to a whole
// vector.
template <class A>
inline void pack_queries(const Tensor& tokens, const Chunk& chunk, std::int64_t head,
                         const QueryTile<A>& tile, std::int64_t column, A scale, A* to) {
  constexpr std::int64_t pitch = kPanel<A>;
  const auto clear = [&](std::int64_t begin, std::int64_t end) {
    std::memset(to + begin * pitch, 0, static_cast<std::size_t>((end - begin) * pitch) * sizeof(A));
  };
  clear(0, tile.idle);
  load_tile(tokens, chunk.tokens, chunk.token(tile.first + tile.idle), tile.rows - tile.idle,
            head * tokens.stride(2) + column, smaller(tokens.size(3) - column, pitch), to + tile.idle * pitch,
            pitch);
  clear(tile.rows, tile.padded_rows());
  if (scale == A(1)) return;
  for (std::int64_t i = tile.idle * pitch; i < tile.rows * pitch; i += kLanes<A>) {
    store(to + i, load(to + i) * scale);
  }
}

// Row i of the square becomes its column i. A round of interleaving rows i and i + lanes / 2 rotates the bits
// of (row, column) by one; after log2(lanes) rounds the two have changed places.
template <class A>
inline void transpose_square(Vec<A> (&rows)[kLanes<A>]) {
  using Lanes = std::make_integer_sequence<int, kLanes<A>>;
  constexpr int half = kLanes<A> / 2;
#pragma GCC unroll 4
  for (int round = 1; round < kLanes<A>; round *= 2) {
    Vec<A> next[kLanes<A>];
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + half], Lanes{});
      next[2 * i + 1] = interleave_high(rows[i], rows[i + half], Lanes{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<A>; ++i) rows[i] = next[i];
  }
}

// Stores rows as `count` elements of depth of a right operand, groups of them being kPanel groups apart. Rows
// up to a whole group are there.
template <class P, class A = Acc<P>>
inline void store_depth(const Vec<A>* rows, std::int64_t count, P* to) {
  for (std::int64_t k = 0; k < count; k += kGroup<P>) {
    Vec<A> group[kGroup<P>];
    for (int i = 0; i < kGroup<P>; ++i) group[i] = rows[k + i];
    Operand<P>::store_groups(to + k * kPanel<A>, Operand<P>::group(group));
  }
}

// What pack_queries packed, as a right operand whose depth is the rows: to[padded_rows][kPanel].
template <class P, class A = Acc<P>>
inline void group_queries(const A* packed, const QueryTile<A>& tile, P* to) {
  constexpr std::int64_t width = kPanel<A>;
  for (std::int64_t row = 0; row < tile.padded_rows(); row += kGroup<P>) {
    for (std::int64_t c = 0; c < width; c += kLanes<A>) {
      Vec<A> rows[kGroup<P>];
      for (int i = 0; i < kGroup<P>; ++i) rows[i] = load(packed + (row + i) * width + c);
      store_depth(rows, kGroup<P>, to + row * width + c * kGroup<P>);
    }
  }
}

// The same of columns [column, column + kPanel) out of `depth`, as one whose depth is the columns:
// to[panel][depth up to a whole group][kPanel of queries].
template <class P, class A = Acc<P>>
inline void transpose_queries(const A* packed, const QueryTile<A>& tile, std::int64_t column,
                              std::int64_t depth, P* to) {
  constexpr std::int64_t width = kPanel<A>, lanes = kLanes<A>;
  const std::int64_t columns = smaller(width, depth - column), pitch = round_up(depth, kGroup<P>);
  for (std::int64_t row = 0; row < tile.padded_rows(); row += lanes) {
    for (std::int64_t c = 0; c < columns; c += lanes) {
      Vec<A> square[lanes];
      for (int i = 0; i < lanes; ++i) square[i] = load(packed + (row + i) * width + c);
      transpose_square<A>(square);
      store_depth(square, smaller(lanes, columns - c),
                  to + (row / width * pitch + column + c) * width + row % width * kGroup<P>);
    }
  }
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
