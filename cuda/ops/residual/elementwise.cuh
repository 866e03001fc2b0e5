// The gate and the second hop: V elements per thread and access.
#pragma once

#include "common/types.cuh"

namespace megalodon::cuda {

inline constexpr int kElementThreads = 256;

// 1 / (1 + exp(-x)) without overflow.
template <class A>
MEGALODON_DEVICE A sigmoid(A x) {
  const A e = std::exp(x < 0 ? x : -x);
  return (x < 0 ? e : A(1)) / (A(1) + e);
}

template <class T>
struct SiluMulArgs {
  Global<const T> gate, value, dy;
  Global<T> y, dgate, dvalue;
  std::int64_t count;
};

template <int V, class T>
MEGALODON_KERNEL void silu_mul_forward_kernel(SiluMulArgs<T> op) {
  using A = Acc<T>;
  const std::int64_t i = (block_x() * kElementThreads + thread_index()) * V;
  if (i >= op.count) return;
  A gate[V], value[V];
  load<V>(op.gate, i, gate);
  load<V>(op.value, i, value);
#pragma unroll
  for (int e = 0; e < V; ++e) value[e] *= gate[e] * sigmoid(gate[e]);
  store<V>(op.y, i, value);
}

// With s = sigmoid(gate):  d silu / d gate = s + gate s (1 - s).
template <int V, class T>
MEGALODON_KERNEL void silu_mul_backward_kernel(SiluMulArgs<T> op) {
  using A = Acc<T>;
  const std::int64_t i = (block_x() * kElementThreads + thread_index()) * V;
  if (i >= op.count) return;
  A gate[V], value[V], dy[V];
  load<V>(op.gate, i, gate);
  load<V>(op.value, i, value);
  load<V>(op.dy, i, dy);
#pragma unroll
  for (int e = 0; e < V; ++e) {
    const A s = sigmoid(gate[e]), silu = gate[e] * s;
    gate[e] = dy[e] * value[e] * (s + silu * (1 - s));
    value[e] = dy[e] * silu;
  }
  store<V>(op.dgate, i, gate);
  store<V>(op.dvalue, i, value);
}

template <class T>
struct TwoHopArgs {
  Global<const T> branch, residual, dy;
  Global<const Acc<T>> alpha;  // (dim,) or absent, which means 1
  Global<T> out;               // y or dbranch
  Global<Acc<T>> dalpha;       // backward: (blocks, dim) sums, or absent
  std::int64_t rows, dim;
};

// Blocks lie along rows (x) and columns (y); f(at, alpha) for V elements at `at`.
template <int V, class T, class F>
MEGALODON_DEVICE void for_rows(const TwoHopArgs<T>& op, std::int64_t c, const F& f) {
  Acc<T> alpha[V];
#pragma unroll
  for (int e = 0; e < V; ++e) alpha[e] = 1;
  if (op.alpha) load<V>(op.alpha, c, alpha);
#pragma unroll 2
  for (std::int64_t row = block_x(); row < op.rows; row += blocks_x()) f(row * op.dim + c, alpha);
}

template <int V, class T>
MEGALODON_KERNEL void two_hop_forward_kernel(TwoHopArgs<T> op) {
  using A = Acc<T>;
  const std::int64_t c = (block_y() * kElementThreads + thread_index()) * V;
  if (c >= op.dim) return;
  for_rows<V>(op, c, [&](std::int64_t at, const A(&alpha)[V]) {
    A branch[V], residual[V];
    load<V>(op.branch, at, branch);
    load<V>(op.residual, at, residual);
#pragma unroll
    for (int e = 0; e < V; ++e) residual[e] += alpha[e] * branch[e];
    store<V>(op.out, at, residual);
  });
}

template <int V, class T>
MEGALODON_KERNEL void two_hop_backward_kernel(TwoHopArgs<T> op) {
  using A = Acc<T>;
  const std::int64_t c = (block_y() * kElementThreads + thread_index()) * V;
  if (c >= op.dim) return;
  A dalpha[V] = {};
  for_rows<V>(op, c, [&](std::int64_t at, const A(&alpha)[V]) {
    A branch[V], dy[V];
    load<V>(op.branch, at, branch);
    load<V>(op.dy, at, dy);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      dalpha[e] += dy[e] * branch[e];
      dy[e] *= alpha[e];
    }
    store<V>(op.out, at, dy);
  });
  if (op.dalpha) store<V>(op.dalpha, block_x() * op.dim + c, dalpha);
}

}  // namespace megalodon::cuda
