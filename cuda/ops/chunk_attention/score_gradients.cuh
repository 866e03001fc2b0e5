// The gradient of the scores, with dp = dy . v. p^ comes in float, where dp stands after it, so that p is
// rounded once:
//
//   gradient_tiles    p, dp, and the tile's sum of p dp
//   finish_means      D = sum of p dp over the tiles
//   score_gradients   ds = scale p (dp - D) in the place of p
#pragma once

#include "ops/chunk_attention/probabilities.cuh"

namespace megalodon::cuda {

// a / b for numbers far from the limits of float, rounded as a division is: the only weight of a query is
// exactly 1, so its score has no gradient.
MEGALODON_DEVICE float quotient(float a, float b) {
  const float inverse = 1 / b, q = a * inverse;
  return std::fma(std::fma(-q, b, a), inverse, q);
}

template <class T>
MEGALODON_KERNEL void gradient_tiles(Group<T> op) {
  SharedMemory memory;
  const BandMemory<T> shared = take_band<T>(memory);
  const AttentionArgs<T>& from = op.attention;
  const BandTile at = tile_of_block(op);
  const Band& band = at.band;
  if (!at.exists) return;
  Sums sums;
  band_product(shared, band, at.key, from.value_dim, lines_of(from, band.chunk, from.dy, from.value_dim),
               lines_of(from, band.chunk, from.v, from.value_dim, from.initial_v), sums);

  const std::int64_t tile = at.kept * kTileSize, rows = at.kept * kTile;
  float factor[kPart / 8], total[kPart / 8], product[kPart / 8] = {};
  each_row([&](int m, int row) {
    factor[m] = read(op.factor[rows + row]);
    total[m] = op.total[band.row + row];
  });
  each_pair(sums, [&](int m, int row, int column, float& x, float& y) {
    const std::int64_t i = tile + row * kTile + column;
    float p[2];
    load(Global<const float>(op.dp), i, p);
    // What is not seen stays 0 in a query whose scores are NaN.
#pragma unroll
    for (int e = 0; e < 2; ++e) p[e] = p[e] == 0 ? 0 : quotient(p[e] * factor[m], total[m]);
    const float dp[2] = {x, y};
    store(op.p, i, p);
    store(op.dp, i, dp);
    product[m] += (p[0] == 0 ? 0 : p[0] * x) + (p[1] == 0 ? 0 : p[1] * y);
  });
  combine_rows(shared.scratch, product, sum_of_two);
  each_row([&](int m, int row) { op.product[rows + row] = product[m]; });
}

// A thread has one query of a band.
template <class T>
MEGALODON_KERNEL void finish_means(Group<T> op) {
  const Band band = band_at(op, static_cast<int>(block_x()));
  if (!band.exists) return;
  float mean = 0;
  for (int j = 0; j * kTile < band.end; ++j) mean += op.product[(band.tile + j) * kTile + thread_index()];
  op.mean[band.row + thread_index()] = mean;
}

template <class T>
MEGALODON_KERNEL void score_gradients(Group<T> op) {
  const BandTile at = tile_of_block(op);
  if (!at.exists) return;
  const std::int64_t tile = at.kept * kTileSize;
  for (int e = thread_index() * kPiece; e < kTileSize; e += kProductThreads * kPiece) {
    const float mean = op.mean[at.band.row + e / kTile];
    float p[kPiece], dp[kPiece / 2];
    load(Global<const T>(op.p), tile + e, p);
#pragma unroll
    for (int half = 0; half < kPiece; half += kPiece / 2) {
      load(Global<const float>(op.dp), tile + e + half, dp);
#pragma unroll
      for (int d = 0; d < kPiece / 2; ++d) {
        float& ds = p[half + d];
        ds = ds == 0 ? 0 : ds * (dp[d] - mean) * op.attention.scale;
      }
    }
    store(op.p, tile + e, p);
  }
}

}  // namespace megalodon::cuda
