// The moving average of at most one token per sequence, as in decoding.
//
// Here every coefficient is used once per sequence. So they are read where they lie, the EMA dims of a
// channel side by side, real and imaginary parts in turn, instead of being gathered by channels as for a
// scan.
#pragma once

#include "cpu/kernels/rows.h"
#include "cpu/kernels/tile.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// Vectors of complex numbers (re, im, re, im, ...); one vector has half as many numbers as lanes.
template <class V, int... i>
inline V swap_parts(V value, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(value, value, (i ^ 1)...);
}
template <class V, int... i>
inline V real_parts(V value, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(value, value, (i & ~1)...);
}
template <class V, int... i>
inline V imaginary_parts(V value, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(value, value, (i | 1)...);
}
// Real numbers kFirst, kFirst + 1, ... of a vector as complex ones.
template <int kFirst, class V, int... i>
inline V as_complex(V real, std::integer_sequence<int, i...>) {
  constexpr int lanes = sizeof...(i);
  return __builtin_shufflevector(real, V{}, (i % 2 == 0 ? kFirst + i / 2 : lanes)...);
}
template <class V, int... i>
inline V minus_imaginary(V value, std::integer_sequence<int, i...>) {
  return value * V{(i % 2 == 0 ? 1 : -1)...};
}

template <class A>
using LaneIndices = std::make_integer_sequence<int, kLanes<A>>;

// to = q from + p x of one vector of complex numbers; the result is gamma to, whose real parts are wanted.
template <class A>
inline Vec<A> step_complex(const A* q, const A* gamma, const A* from, A* to, Vec<A> px) {
  constexpr LaneIndices<A> lanes{};
  const Vec<A> coefficient = load(q), before = from == nullptr ? Vec<A>{} : load(from);
  const Vec<A> turned = minus_imaginary(imaginary_parts(coefficient, lanes), lanes) * before;
  const Vec<A> after = px + real_parts(coefficient, lanes) * before + swap_parts(turned, lanes);
  store(to, after);
  return minus_imaginary(load(gamma) * after, lanes);
}

// One channel of `ndim` dims: the state after the token, and y without the skip connection.
template <class A, bool kReal>
inline A step_channel(const A* p, const A* q, const A* gamma, const A* from, A* to, std::int64_t ndim, A x) {
  constexpr int W = kLanes<A>;
  constexpr LaneIndices<A> lanes{};
  Vec<A> sum{};
  std::int64_t k = 0;
  for (; k + W <= ndim; k += W) {
    const Vec<A> px = load(p + k) * x;
    if constexpr (kReal) {
      const Vec<A> after = px + load(q + k) * (from == nullptr ? Vec<A>{} : load(from + k));
      store(to + k, after);
      sum += load(gamma + k) * after;
    } else {
      const std::int64_t i = 2 * k, j = i + W;
      sum +=
          step_complex(q + i, gamma + i, from == nullptr ? from : from + i, to + i, as_complex<0>(px, lanes));
      sum += step_complex(q + j, gamma + j, from == nullptr ? from : from + j, to + j,
                          as_complex<W / 2>(px, lanes));
    }
  }
  A y = reduce_sum(sum);
  for (; k < ndim; ++k) {
    if constexpr (kReal) {
      to[k] = p[k] * x + q[k] * (from == nullptr ? A(0) : from[k]);
      y += gamma[k] * to[k];
    } else {
      const A *turn = q + 2 * k, *weight = gamma + 2 * k;
      const A re = from == nullptr ? A(0) : from[2 * k], im = from == nullptr ? A(0) : from[2 * k + 1];
      to[2 * k] = p[k] * x + turn[0] * re - turn[1] * im;
      to[2 * k + 1] = turn[0] * im + turn[1] * re;
      y += weight[0] * to[2 * k] - weight[1] * to[2 * k + 1];
    }
  }
  return y;
}

inline constexpr std::int64_t kStepChannels = 256;  // of a job

template <class A, bool kReal>
inline void cema_step_as(const CemaForward& op, const SequenceSpan& sequences, int threads) {
  const std::int64_t dim = op.p.size(0), ndim = op.p.size(1), size = ndim * (kReal ? 1 : 2);
  const std::int64_t blocks = (dim + kStepChannels - 1) / kStepChannels;
  const A *p = op.p.as<const A>(), *q = op.q.as<const A>(), *gamma = op.gamma.as<const A>();
  const A* omega = op.omega.defined() ? op.omega.as<const A>() : nullptr;
  parallel_for(sequences.count * blocks, threads, [&](std::int64_t job) {
    const std::int64_t index = job / blocks, first = job % blocks * kStepChannels;
    const std::int64_t width = clamp(dim - first, 0, kStepChannels);
    const Sequence& sequence = sequences.data[index];
    const A* initial = op.initial_state.defined() ? op.initial_state.as<const A>() : nullptr;
    const A* from = initial == nullptr ? nullptr : initial + (index * dim + first) * size;
    A* to = op.state.as<A>() + (index * dim + first) * size;
    if (sequence.length == 0) {
      for (std::int64_t i = 0; i < width * size; ++i) to[i] = from == nullptr ? A(0) : from[i];
      return;
    }
    A x[kStepChannels], y[kStepChannels];
    load_tile(op.x, sequence, 0, 1, first, width, x, kStepChannels);
    for (std::int64_t c = 0; c < width; ++c) {
      const std::int64_t d = first + c;
      const A* before = from == nullptr ? nullptr : from + c * size;
      y[c] = step_channel<A, kReal>(p + d * ndim, q + d * size, gamma + d * size, before, to + c * size, ndim,
                                    x[c]);
      if (omega != nullptr) y[c] += omega[d] * x[c];
    }
    store_tile(op.y, sequence, 0, 1, first, width, y, kStepChannels);
  });
  zero_padding(op.y, sequences, threads);
}

template <class A>
inline void cema_step(const CemaForward& op, const SequenceSpan& sequences, int threads) {
  op.real ? cema_step_as<A, true>(op, sequences, threads) : cema_step_as<A, false>(op, sequences, threads);
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
