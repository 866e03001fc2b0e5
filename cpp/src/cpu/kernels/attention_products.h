// The three causal matrix products of attention, in blocks of keys.
//
// Queries and keys are positions of a chunk, and a query t takes part in key s only where s <= t. Blocks of
// registers on the diagonal are cut to that triangle, so that NaN or inf at one position never reaches a
// result that does not depend on it.
//
// Weights (scores, probabilities and their gradients) are panels[panel of queries][key][kPanel], `stride`
// apart.
#pragma once

#include "cpu/kernels/attention_tile.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// weights[t][first + i] (+)= sum_d rows[i][d] right[t][d] for i < count and all queries t of the tile. `rows`
// has the given pitch; right is [panel][right_depth][kPanel], from the first of the `depth` rows on. Later
// keys are computed too, and mean nothing, where they share a panel with earlier ones.
template <class A>
inline void score_product(const A* rows, std::int64_t pitch, std::int64_t first, std::int64_t count,
                          const A* right, std::int64_t right_depth, std::int64_t depth,
                          const QueryTile<A>& tile, A* weights, std::int64_t stride, bool accumulate) {
  for (std::int64_t panel = 0; panel < tile.panels(); ++panel) {
    const std::int64_t visible = smaller(count, tile.panel_keys(panel) - first);
    with_vectors<A>(tile.panel_rows(panel), [&](auto vectors) {
      for (std::int64_t i = 0; i < visible; i += kBlockRows) {
        Block<A, vectors> block;
        block.multiply(AlongRows<A>{rows + i * pitch, pitch}, right + panel * right_depth * kPanel<A>, depth);
        block.write(weights + panel * stride + (first + i) * kPanel<A>, kPanel<A>, accumulate);
      }
    });
  }
}

// result[t][:] (+)= sum over keys s in [first, last), s <= t, of weights[t][s] right[s - first][:], for the
// queries of one panel and up to kPanel columns; right is [key][kPanel].
template <class A>
inline void weighted_product(const A* weights, const QueryTile<A>& tile, std::int64_t panel,
                             std::int64_t first, std::int64_t last, const A* right, std::int64_t columns,
                             A* result, std::int64_t pitch, bool accumulate) {
  with_vectors<A>(columns, [&](auto vectors) {
    for (std::int64_t row = 0; row < tile.panel_rows(panel); row += kBlockRows) {
      const std::int64_t diagonal = tile.panel_first(panel) + row;
      if (diagonal < first) continue;
      const std::int64_t depth = smaller(last, diagonal) - first;
      const AlongColumns<A> left{weights + first * kPanel<A> + row};
      Block<A, vectors> block;
      block.multiply(left, right, depth);
      if (diagonal < last) block.multiply_lower(left.from(depth), right + depth * kPanel<A>);
      block.write(result + row * pitch, pitch, accumulate);
    }
  });
}

// result[s][:] += sum over queries t >= s of the tile of weights[t][s] right[t][:], for kBlockRows keys from
// `key` on; right is [row of the tile][kPanel].
template <int kVectors, class A>
inline void transposed_block(const A* weights, std::int64_t stride, const QueryTile<A>& tile,
                             std::int64_t key, const A* right, A* result, std::int64_t pitch) {
  Block<A, kVectors> block;
  block.prefetch(result, pitch);
  std::int64_t row = key < tile.first ? tile.idle : key - tile.first;
  bool diagonal = key >= tile.first;
  for (std::int64_t panel = row / kPanel<A>; panel < tile.panels(); ++panel) {
    const AlongRows<A> left{weights + panel * stride + key * kPanel<A>, kPanel<A>};
    const A* panel_right = right + panel * kPanel<A> * kPanel<A>;
    std::int64_t begin = row - panel * kPanel<A>;
    const std::int64_t end = tile.panel_rows(panel);
    if (diagonal) {
      block.multiply_upper(left.from(begin), panel_right + begin * kPanel<A>, tile.idle - row, end - begin);
      begin += kBlockRows;
      diagonal = false;
    }
    if (begin < end) block.multiply(left.from(begin), panel_right + begin * kPanel<A>, end - begin);
    row = (panel + 1) * kPanel<A>;
  }
  block.write(result, pitch, true);
}

// The same for keys [first, last) and all columns; right is [panel of columns][padded_rows][kPanel].
template <class A>
inline void transposed_product(const A* weights, std::int64_t stride, const QueryTile<A>& tile,
                               std::int64_t first, std::int64_t last, const A* right, std::int64_t columns,
                               A* result, std::int64_t pitch) {
  for (std::int64_t column = 0; column < columns; column += kPanel<A>) {
    with_vectors<A>(columns - column, [&](auto vectors) {
      for (std::int64_t key = first; key < last; key += kBlockRows) {
        transposed_block<vectors>(weights, stride, tile, key, right + column * tile.padded_rows(),
                                  result + key * pitch + column, pitch);
      }
    });
  }
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
