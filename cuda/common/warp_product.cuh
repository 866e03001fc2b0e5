// Matrix products of one warp on tensor cores (sm_80 and later), for bfloat16 and float16 with sums in float:
//
//   sum (16, 8) += a (16, 16) b (16, 8)
//
// Every lane holds a part of each. Of the sums, element e of a lane is at (sum_row(e), sum_column(e)); a and
// b come from tiles in shared memory. All 32 lanes call these functions together.
#pragma once

#include "common/reduce.cuh"
#include "common/types.cuh"

namespace megalodon::cuda {

MEGALODON_DEVICE int sum_row(int e) { return lane_index() / 4 + e / 2 * 8; }
MEGALODON_DEVICE int sum_column(int e) { return lane_index() % 4 * 2 + e % 2; }

MEGALODON_DEVICE void multiply_add(BFloat16, float (&sum)[4], const std::uint32_t (&a)[4],
                                   const std::uint32_t (&b)[2]) {
  multiply_bfloat16(sum, a, b);
}
MEGALODON_DEVICE void multiply_add(Float16, float (&sum)[4], const std::uint32_t (&a)[4],
                                   const std::uint32_t (&b)[2]) {
  multiply_float16(sum, a, b);
}

// Multiplies the two rows of a that this lane has part of, sum_row(0) and sum_row(2), by a factor each.
template <class T>
MEGALODON_DEVICE void scale_rows(std::uint32_t (&a)[4], T low, T high) {
  const T factors[2] = {low, high};
#pragma unroll
  for (int e = 0; e < 4; ++e) a[e] = pair_product(a[e], factors[e % 2]);
}

// Elements between the lines of a tile in shared memory, so that eight lines lie in different banks and every
// line starts at a multiple of 16 bytes. `width`, of a line, is a multiple of 16.
constexpr int tile_pitch(int width) { return width + 8; }

// Rows [row, row + 16) and depths [k, k + 16) of a, from a tile whose lines are rows, or depths (kDeep).
template <bool kDeep, class T>
MEGALODON_DEVICE void load_a(const Shared<T>& tile, int pitch, int row, int k, std::uint32_t (&a)[4]) {
  const int lane = lane_index();
  if constexpr (kDeep) {
    load_matrices<true>(tile, (k + lane % 8 + lane / 16 * 8) * pitch + row + lane / 8 % 2 * 8, a);
  } else {
    load_matrices<false>(tile, (row + lane % 16) * pitch + k + lane / 16 * 8, a);
  }
}

// Depths [k, k + 16) of columns [column, column + 8) and of the next eight, from a tile whose lines are
// columns, or depths (kDeep).
template <bool kDeep, class T>
MEGALODON_DEVICE void load_b(const Shared<T>& tile, int pitch, int column, int k, std::uint32_t (&b)[2][2]) {
  const int lane = lane_index();
  std::uint32_t both[4];
  if constexpr (kDeep) {
    load_matrices<true>(tile, (k + lane % 16) * pitch + column + lane / 16 * 8, both);
  } else {
    load_matrices<false>(tile, (column + lane % 8 + lane / 16 * 8) * pitch + k + lane / 8 % 2 * 8, both);
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) b[e / 2][e % 2] = both[e];
}

}  // namespace megalodon::cuda
