// What the statistics are for: y, and in backward dx and the gradients of weight and bias. A thread owns V
// channels of one group and walks tokens.
#pragma once

#include "common/sequences.cuh"
#include "common/types.cuh"

namespace megalodon::cuda {

inline constexpr int kApplyThreads = 128;

template <class T>
struct ApplyArgs {
  Tokens<const T> x, dy;
  Global<T> out;                       // (B, L, D): y or dx
  Global<const Acc<T>> weight, bias;   // (D,) or absent
  Global<const std::uint8_t> padding;  // (B, L) or absent
  Global<const double> statistics;     // (B, L, G, 2): mean_t and rsqrt(var_t + eps)
  Global<const double> terms;          // backward, (B, L, G, 2): dx = r g + terms[0] + terms[1] (x - mean_t)
  Global<Acc<T>> dweight, dbias;       // backward: (blocks, D) sums, or absent
  std::int64_t batch, length, groups, width;
};

// Statistics of a token's group. The mean is split, so that x - mean loses nothing where the mean is large.
template <class A>
struct Center {
  A mean, rest, scale;
};

template <class A>
MEGALODON_DEVICE Center<A> center(const Global<const double>& statistics, std::int64_t pair) {
  const double mean = statistics[pair];
  const A high = static_cast<A>(mean);
  return {high, static_cast<A>(mean - static_cast<double>(high)), static_cast<A>(statistics[pair + 1])};
}

template <class A>
MEGALODON_DEVICE A deviation(const Center<A>& at, A x) {
  return x - at.mean - at.rest;
}

// V values of a parameter, `absent` where it is not given.
template <int V, class A>
MEGALODON_DEVICE void load_or(const Global<const A>& from, std::int64_t c, A absent, A (&to)[V]) {
#pragma unroll
  for (int e = 0; e < V; ++e) to[e] = absent;
  if (from) load<V>(from, c, to);
}

// f(token, row, time) for the tokens of a block, blocks_x() apart; padded ones get zeros instead.
template <int V, class T, class F>
MEGALODON_DEVICE void for_tokens(const ApplyArgs<T>& op, std::int64_t c, const F& f) {
  for (std::int64_t i = block_x(); i < op.batch * op.length; i += blocks_x()) {
    if (op.padding && op.padding[i] != 0) {
      const Acc<T> zeros[V] = {};
      store<V>(op.out, i * op.groups * op.width + c, zeros);
    } else {
      f(i, i / op.length, i % op.length);
    }
  }
}

template <int V, class T>
MEGALODON_KERNEL void normalize(ApplyArgs<T> op) {
  using A = Acc<T>;
  const std::int64_t c = (block_y() * kApplyThreads + thread_index()) * V, dim = op.groups * op.width;
  if (c >= dim) return;
  A weight[V], bias[V];
  load_or<V>(op.weight, c, A(1), weight);
  load_or<V>(op.bias, c, A(0), bias);
  for_tokens<V>(op, c, [&](std::int64_t i, std::int64_t row, std::int64_t time) {
    const Center<A> at = center<A>(op.statistics, (i * op.groups + c / op.width) * 2);
    A x[V];
    load<V>(token(op.x, row, time), c, x);
#pragma unroll
    for (int e = 0; e < V; ++e) x[e] = deviation(at, x[e]) * at.scale * weight[e] + bias[e];
    store<V>(op.out, i * dim + c, x);
  });
}

template <int V, class T>
MEGALODON_KERNEL void write_gradients(ApplyArgs<T> op) {
  using A = Acc<T>;
  const std::int64_t c = (block_y() * kApplyThreads + thread_index()) * V, dim = op.groups * op.width;
  if (c >= dim) return;
  A weight[V], dweight[V] = {}, dbias[V] = {};
  load_or<V>(op.weight, c, A(1), weight);
  for_tokens<V>(op, c, [&](std::int64_t i, std::int64_t row, std::int64_t time) {
    const std::int64_t pair = (i * op.groups + c / op.width) * 2;
    const Center<A> at = center<A>(op.statistics, pair);
    const A constant = static_cast<A>(op.terms[pair]), slope = static_cast<A>(op.terms[pair + 1]);
    A x[V], dy[V];
    load<V>(token(op.x, row, time), c, x);
    load<V>(token(op.dy, row, time), c, dy);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A centred = deviation(at, x[e]);
      dweight[e] += dy[e] * (centred * at.scale);
      dbias[e] += dy[e];
      x[e] = rounded_product(dy[e], weight[e]) * at.scale + constant + slope * centred;
    }
    store<V>(op.out, i * dim + c, x);
  });
  if (op.dweight) store<V>(op.dweight, block_x() * dim + c, dweight);
  if (op.dbias) store<V>(op.dbias, block_x() * dim + c, dbias);
}

}  // namespace megalodon::cuda
