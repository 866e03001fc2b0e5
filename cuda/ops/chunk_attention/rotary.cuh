// The queries and keys of normalized attention, made once before and taken apart after it:
//
//   z^ = z rsqrt(mean(z^2) + eps)     q = rope(z^ gamma[0] + beta[0])     k = rope(z^ gamma[1] + beta[1])
//
// RoPE turns pair j (elements 2j and 2j + 1) by position * base^(-2j / Dz), the position inside the chunk.
#pragma once

#include "megalodon/math/rope.h"
#include "ops/chunk_attention/attention.cuh"

namespace megalodon::cuda {

inline constexpr int kRotaryWarps = 4;
inline constexpr int kFrequencyThreads = 128;

template <class T>
struct RotaryArgs {
  using A = Acc<T>;
  Tiles tiles;  // of kRotaryWarps tokens
  Heads<const T> z;
  Global<const A> gamma, beta;  // (2, H, Dz)
  Global<const std::int64_t> initial_length;
  Global<double> frequency;  // (Dz / 2,)
  Heads<T> q, k;             // outputs
  Heads<A> dq, dk;           // backward
  Heads<T> dz;
  Global<A> dgamma, dbeta;  // backward: (blocks, 2, H, Dz) sums
  std::int64_t head_count, dim, chunk;
  double base;
  A eps;
};

template <class T>
MEGALODON_KERNEL void rope_frequencies(RotaryArgs<T> op) {
  const std::int64_t j = block_x() * kFrequencyThreads + thread_index();
  if (j < op.dim / 2) op.frequency[j] = math::rope_frequency(op.base, j, op.dim);
}

template <class A>
struct Turn {
  A cosine, sine;
};

// Whole turns are taken off in double, so that the angle is as accurate at any position.
template <class A>
MEGALODON_DEVICE Turn<A> turn(std::int64_t position, double frequency) {
  constexpr double circle = 6.283185307179586476925286766559;
  const double turns = static_cast<double>(position) * frequency / circle;
  const A angle = static_cast<A>((turns - std::rint(turns)) * circle);
  return {std::cos(angle), std::sin(angle)};
}

// One token of one head: where its rows start, and its position in the chunk.
struct RotaryToken {
  std::int64_t row, time, h, position;
};

template <class T>
MEGALODON_DEVICE RotaryToken rotary_token(const RotaryArgs<T>& op, const Tile& tile, std::int64_t j) {
  const Sequence sequence = sequence_at(op.tiles.sequences, tile.sequence);
  const std::int64_t filled = op.initial_length ? op.initial_length[tile.sequence] : 0;
  return {sequence.row, time_of(op.tiles.sequences, sequence, tile.first + j), block_y(),
          (filled + tile.first + j) % op.chunk};
}

template <class E>
MEGALODON_DEVICE Global<E> row_of(const Heads<E>& array, const RotaryToken& at) {
  return array.data + (at.row * array.row_stride + at.time * array.time_stride + at.h * array.head_stride);
}

// rsqrt(mean(z^2) + eps), by a warp.
template <class T, class A = Acc<T>>
MEGALODON_DEVICE A row_scale(const RotaryArgs<T>& op, const Global<const T>& z) {
  A squares = 0;
  for (std::int64_t d = lane_index(); d < op.dim; d += kWarp) {
    const A value = read(z[d]);
    squares += value * value;
  }
  return A(1) / std::sqrt(warp_sum(squares) / static_cast<A>(op.dim) + op.eps);
}

// A block rotates a tile of one head, a warp each token.
template <class T>
MEGALODON_KERNEL void rotate(RotaryArgs<T> op) {
  using A = Acc<T>;
  const Tile tile = tile_at(op.tiles, block_x());
  if (warp_index() >= tile.tokens) return;
  const RotaryToken at = rotary_token(op, tile, warp_index());
  const Global<const T> z = row_of(op.z, at);
  const Global<T> q = row_of(op.q, at), k = row_of(op.k, at);
  const A scale = row_scale(op, z);
  for (std::int64_t pair = lane_index(); pair < op.dim / 2; pair += kWarp) {
    const std::int64_t d = 2 * pair, first = at.h * op.dim + d, second = op.head_count * op.dim + first;
    const Turn<A> by = turn<A>(at.position, op.frequency[pair]);
    const A x = A(read(z[d])) * scale, y = A(read(z[d + 1])) * scale;
    const A qx = x * op.gamma[first] + op.beta[first], qy = y * op.gamma[first + 1] + op.beta[first + 1];
    const A kx = x * op.gamma[second] + op.beta[second], ky = y * op.gamma[second + 1] + op.beta[second + 1];
    write(q[d], qx * by.cosine - qy * by.sine);
    write(q[d + 1], qx * by.sine + qy * by.cosine);
    write(k[d], kx * by.cosine - ky * by.sine);
    write(k[d + 1], kx * by.sine + ky * by.cosine);
  }
}

// Turns the gradients of a pair of q and of k back.
template <class A>
struct PairGradients {
  A qx, qy, kx, ky;
};

template <class T, class A = Acc<T>>
MEGALODON_DEVICE PairGradients<A> turned_back(const RotaryArgs<T>& op, const RotaryToken& at,
                                              std::int64_t pair) {
  const Global<A> q = row_of(op.dq, at), k = row_of(op.dk, at);
  const Turn<A> by = turn<A>(at.position, op.frequency[pair]);
  const A qx = q[2 * pair], qy = q[2 * pair + 1], kx = k[2 * pair], ky = k[2 * pair + 1];
  return {qx * by.cosine + qy * by.sine, qy * by.cosine - qx * by.sine, kx * by.cosine + ky * by.sine,
          ky * by.cosine - kx * by.sine};
}

// The scale of a row and the mean of its gradient times the normalized row.
template <class A>
struct RotaryRow {
  A scale, projection;
};

template <class T, class A = Acc<T>>
MEGALODON_DEVICE RotaryRow<A> read_rotary_row(const RotaryArgs<T>& op, const RotaryToken& at) {
  const Global<const T> z = row_of(op.z, at);
  const A scale = row_scale(op, z);
  A product = 0;
  for (std::int64_t pair = lane_index(); pair < op.dim / 2; pair += kWarp) {
    const std::int64_t first = at.h * op.dim + 2 * pair, second = op.head_count * op.dim + first;
    const PairGradients<A> g = turned_back(op, at, pair);
    product += (g.qx * op.gamma[first] + g.kx * op.gamma[second]) * A(read(z[2 * pair])) +
               (g.qy * op.gamma[first + 1] + g.ky * op.gamma[second + 1]) * A(read(z[2 * pair + 1]));
  }
  return {scale, warp_sum(product) * scale / static_cast<A>(op.dim)};
}

// dz of one pair of a token; adds to the pair's sums.
template <class T, class A = Acc<T>>
MEGALODON_DEVICE void write_pair(const RotaryArgs<T>& op, const RotaryToken& at, const RotaryRow<A>& row,
                                 std::int64_t pair, A (&dgamma)[4], A (&dbeta)[4]) {
  const std::int64_t d = 2 * pair, first = at.h * op.dim + d, second = op.head_count * op.dim + first;
  const Global<const T> z = row_of(op.z, at);
  const Global<T> dz = row_of(op.dz, at);
  const PairGradients<A> g = turned_back(op, at, pair);
  const A x = A(read(z[d])) * row.scale, y = A(read(z[d + 1])) * row.scale;
  const A dx = g.qx * op.gamma[first] + g.kx * op.gamma[second];
  const A dy = g.qy * op.gamma[first + 1] + g.ky * op.gamma[second + 1];
  write(dz[d], (dx - x * row.projection) * row.scale);
  write(dz[d + 1], (dy - y * row.projection) * row.scale);
  const A gradients[4] = {g.qx, g.qy, g.kx, g.ky}, values[4] = {x, y, x, y};
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    dgamma[e] += gradients[e] * values[e];
    dbeta[e] += gradients[e];
  }
}

// A block takes tiles of one head, blocks_x() tiles apart: a warp reduces each token's row, then a thread
// owns pairs of channels and adds the tokens up.
template <class T>
MEGALODON_KERNEL void rotate_back(RotaryArgs<T> op) {
  using A = Acc<T>;
  SharedMemory memory;
  const Shared<RotaryRow<A>> rows = memory.take<RotaryRow<A>>(kRotaryWarps);
  const std::int64_t sums = block_x() * 2 * op.head_count * op.dim + block_y() * op.dim;
  const std::int64_t to_keys = op.head_count * op.dim;
  const auto sum_index = [&](std::int64_t pair, int e) { return sums + 2 * pair + e % 2 + e / 2 * to_keys; };
  for (std::int64_t pair = thread_index(); pair < op.dim / 2; pair += block_threads()) {
    for (int e = 0; e < 4; ++e) op.dgamma[sum_index(pair, e)] = op.dbeta[sum_index(pair, e)] = 0;
  }
  for (std::int64_t i = block_x(); i < op.tiles.count; i += blocks_x()) {
    const Tile tile = tile_at(op.tiles, i);
    block_barrier();
    if (warp_index() < tile.tokens) {
      const RotaryRow<A> row = read_rotary_row(op, rotary_token(op, tile, warp_index()));
      if (lane_index() == 0) rows[warp_index()] = row;
    }
    block_barrier();
    for (std::int64_t pair = thread_index(); pair < op.dim / 2; pair += block_threads()) {
      A dgamma[4] = {}, dbeta[4] = {};
      for (int j = 0; j < tile.tokens; ++j) {
        write_pair(op, rotary_token(op, tile, j), rows[j], pair, dgamma, dbeta);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        op.dgamma[sum_index(pair, e)] += dgamma[e];
        op.dbeta[sum_index(pair, e)] += dbeta[e];
      }
    }
  }
}

}  // namespace megalodon::cuda
