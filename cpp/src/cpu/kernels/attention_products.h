// The three causal matrix products of attention, in blocks of keys.
//
// Queries and keys are positions of a chunk, and a query t takes part in key s only where s <= t. Blocks of
// registers on the diagonal are cut to that triangle, so that NaN or inf at one position never reaches a
// result that does not depend on it.
//
// Weights (scores, probabilities and their gradients) are panels of queries, `stride` apart.
#pragma once

#include "cpu/kernels/attention_tile.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// weights[panel][first + i][t] (+)= sum_d rows[i][d] right[t][d] for i < count and all queries t of the tile,
// in panels [key][kPanel]. `rows` has the given pitch; right is [panel][right_depth][kPanel], from the first
// of the `depth` rows on. Later keys are computed too, and mean nothing, where they share a panel with
// earlier ones.
template <class P, class A = Acc<P>>
inline void score_product(const P* rows, std::int64_t pitch, std::int64_t first, std::int64_t count,
                          const P* right, std::int64_t right_depth, std::int64_t depth,
                          const QueryTile<A>& tile, A* weights, std::int64_t stride, bool accumulate) {
  for (std::int64_t panel = 0; panel < tile.panels(); ++panel) {
    const std::int64_t visible = smaller(count, tile.panel_keys(panel) - first);
    with_vectors<A>(tile.panel_rows(panel), [&](auto vectors) {
      for (std::int64_t i = 0; i < visible; i += kBlockRows) {
        Block<P, vectors> block;
        block.multiply(AlongRows<P>{rows + i * pitch, pitch}, right + panel * right_depth * kPanel<A>, 0,
                       depth);
        block.write(weights + panel * stride + (first + i) * kPanel<A>, kPanel<A>, accumulate);
      }
    });
  }
}

// result[t][:] (+)= sum over keys s in [first, last), s <= t, of weights[s][t] right[s - first][:], for the
// queries of one panel and up to kPanel columns. `weights` is that panel as a right operand of depth s, and
// so is `right`; first is a multiple of kGroup.
template <class P, class A = Acc<P>>
inline void weighted_product(const P* weights, const QueryTile<A>& tile, std::int64_t panel,
                             std::int64_t first, std::int64_t last, const P* right, std::int64_t columns,
                             A* result, std::int64_t pitch, bool accumulate) {
  with_vectors<A>(columns, [&](auto vectors) {
    for (std::int64_t row = 0; row < tile.panel_rows(panel); row += kBlockRows) {
      const std::int64_t diagonal = tile.panel_first(panel) + row;
      if (diagonal < first) continue;
      const std::int64_t depth = smaller(last, diagonal) - first;
      const AlongColumns<P> left{weights + first * kPanel<A> + row * kGroup<P>};
      Block<P, vectors> block;
      block.multiply(left, right, 0, depth);
      if (diagonal < last) block.multiply_lower(left, right, depth);
      block.write(result + row * pitch, pitch, accumulate);
    }
  });
}

// result[s][:] += sum over queries t >= s of the tile of weights[panel][s][t] right[t][:], for kBlockRows
// keys from `key` on, in panels [key][weight_pitch]; right is [row of the tile][kPanel].
template <int kVectors, class P, class A = Acc<P>>
inline void transposed_block(const P* weights, std::int64_t weight_pitch, std::int64_t stride,
                             const QueryTile<A>& tile, std::int64_t key, const P* right, A* result,
                             std::int64_t pitch) {
  Block<P, kVectors> block;
  block.prefetch(result, pitch);
  std::int64_t row = key < tile.first ? tile.idle : key - tile.first;
  bool diagonal = key >= tile.first;
  for (std::int64_t panel = row / kPanel<A>; panel < tile.panels(); ++panel) {
    const AlongRows<P> left{weights + panel * stride + key * weight_pitch, weight_pitch};
    const P* panel_right = right + panel * kPanel<A> * kPanel<A>;
    std::int64_t begin = row - panel * kPanel<A>;
    const std::int64_t end = tile.panel_rows(panel);
    if (diagonal) {
      block.multiply_upper(left, panel_right, begin, tile.idle - panel * kPanel<A>, end);
      begin += kBlockRows;
      diagonal = false;
    }
    block.multiply(left, panel_right, begin, end);
    row = (panel + 1) * kPanel<A>;
  }
  block.write(result, pitch, true);
}

// The same for keys [first, last) and all columns; right is [panel of columns][padded_rows][kPanel].
template <class P, class A = Acc<P>>
inline void transposed_product(const P* weights, std::int64_t weight_pitch, std::int64_t stride,
                               const QueryTile<A>& tile, std::int64_t first, std::int64_t last,
                               const P* right, std::int64_t columns, A* result, std::int64_t pitch) {
  for (std::int64_t column = 0; column < columns; column += kPanel<A>) {
    with_vectors<A>(columns - column, [&](auto vectors) {
      for (std::int64_t key = first; key < last; key += kBlockRows) {
        transposed_block<vectors>(weights, weight_pitch, stride, tile, key,
                                  right + column * tile.padded_rows(), result + key * pitch + column, pitch);
      }
    });
  }
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
