// rms_norm, layer_norm and add_layer_norm. A warp reduces a row; the row comes from the cache when it is read
// again.
#pragma once

#include "common/reduce.cuh"
#include "common/types.cuh"

namespace megalodon::cuda {

inline constexpr int kNormWarps = 4;

template <class T>
struct NormArgs {
  Global<const T> x, residual;        // (rows, dim), residual may be absent
  Global<const Acc<T>> weight, bias;  // (dim,) or absent
  Global<const T> dy;                 // backward
  Global<T> out;                      // y or dx
  Global<Acc<T>> dweight, dbias;      // backward: (blocks, dim) sums, or absent
  std::int64_t rows, dim;
  Acc<T> eps;
};

// The normalized row is (x - mean) scale + shift.
template <class A>
struct RowStatistics {
  A mean, scale, shift;
  A gradient_mean, projection;  // backward: the means of g and of g n
};

// x, or x + residual: V values from column c of the row that starts at `row`.
template <int V, class T, class A>
MEGALODON_DEVICE void load_sum(const NormArgs<T>& op, std::int64_t row, std::int64_t c, A (&to)[V]) {
  load<V>(op.x, row + c, to);
  if (!op.residual) return;
  A residual[V];
  load<V>(op.residual, row + c, residual);
#pragma unroll
  for (int e = 0; e < V; ++e) to[e] += residual[e];
}

// V values of a parameter, `absent` where it is not given.
template <int V, class A>
MEGALODON_DEVICE void load_parameter(const Global<const A>& from, std::int64_t c, A absent, A (&to)[V]) {
#pragma unroll
  for (int e = 0; e < V; ++e) to[e] = absent;
  if (from) load<V>(from, c, to);
}

// The mean first and then squares of deviations: a one-pass variance would lose every digit when the mean is
// large beside the deviation. What rounding of the mean leaves, the mean of the centred row, is taken out
// too.
template <bool kCenter, int V, class T, class A = Acc<T>>
MEGALODON_DEVICE RowStatistics<A> read_row(const NormArgs<T>& op, std::int64_t row) {
  const A inverse = A(1) / static_cast<A>(op.dim);
  RowStatistics<A> statistics{};
  A x[V];
  if constexpr (kCenter) {
    A sum = 0;
    for (std::int64_t c = lane_index() * V; c < op.dim; c += kWarp * V) {
      load_sum<V>(op, row, c, x);
#pragma unroll
      for (int e = 0; e < V; ++e) sum += x[e];
    }
    statistics.mean = warp_sum(sum) * inverse;
  }
  A rest = 0, squares = 0;
  for (std::int64_t c = lane_index() * V; c < op.dim; c += kWarp * V) {
    load_sum<V>(op, row, c, x);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A deviation = x[e] - statistics.mean;
      rest += deviation;
      squares += deviation * deviation;
    }
  }
  const A remainder = kCenter ? warp_sum(rest) * inverse : A(0);
  const A variance = warp_sum(squares) * inverse - remainder * remainder;
  statistics.scale = A(1) / std::sqrt(variance + op.eps);
  statistics.shift = -remainder * statistics.scale;
  return statistics;
}

template <bool kCenter, int V, class T>
MEGALODON_KERNEL void norm_forward_kernel(NormArgs<T> op) {
  using A = Acc<T>;
  const std::int64_t row = (block_x() * kNormWarps + warp_index()) * op.dim;
  if (row >= op.rows * op.dim) return;
  const RowStatistics<A> statistics = read_row<kCenter, V>(op, row);
  A x[V], weight[V], bias[V];
  for (std::int64_t c = lane_index() * V; c < op.dim; c += kWarp * V) {
    load_sum<V>(op, row, c, x);
    load_parameter<V>(op.weight, c, A(1), weight);
    load_parameter<V>(op.bias, c, A(0), bias);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      x[e] = ((x[e] - statistics.mean) * statistics.scale + statistics.shift) * weight[e] + bias[e];
    }
    store<V>(op.out, row + c, x);
  }
}

// The means of g = dy weight and of g n, which the gradient of a row needs.
template <bool kCenter, int V, class T, class A = Acc<T>>
MEGALODON_DEVICE void read_gradient(const NormArgs<T>& op, std::int64_t row, RowStatistics<A>& statistics) {
  const A inverse = A(1) / static_cast<A>(op.dim);
  A x[V], dy[V], weight[V], sum = 0, product = 0;
  for (std::int64_t c = lane_index() * V; c < op.dim; c += kWarp * V) {
    load_sum<V>(op, row, c, x);
    load<V>(op.dy, row + c, dy);
    load_parameter<V>(op.weight, c, A(1), weight);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A n = (x[e] - statistics.mean) * statistics.scale + statistics.shift;
      const A g = rounded_product(dy[e], weight[e]);
      sum += g;
      product += g * n;
    }
  }
  statistics.gradient_mean = kCenter ? warp_sum(sum) * inverse : A(0);
  statistics.projection = warp_sum(product) * inverse;
}

// dx = scale (g - mean(g) - n mean(g n)), mean(g) only if centred, of the group's rows, by columns: a thread
// adds its columns' terms of dweight and dbias up over the rows. g is rounded once: its mean must cancel it
// where D is 1.
template <int V, class T, class A = Acc<T>>
MEGALODON_DEVICE void write_gradients(const NormArgs<T>& op, std::int64_t first, int rows,
                                      const Shared<RowStatistics<A>>& statistics) {
  A x[V], dy[V], weight[V];
  for (std::int64_t c = thread_index() * V; c < op.dim; c += kNormWarps * kWarp * V) {
    A dweight[V] = {}, dbias[V] = {};
    load_parameter<V>(op.weight, c, A(1), weight);
    for (int r = 0; r < rows; ++r) {
      const RowStatistics<A> row = statistics[r];
      const std::int64_t at = (first + r) * op.dim;
      load_sum<V>(op, at, c, x);
      load<V>(op.dy, at + c, dy);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const A n = (x[e] - row.mean) * row.scale + row.shift;
        dweight[e] += dy[e] * n;
        dbias[e] += dy[e];
        x[e] = (rounded_product(dy[e], weight[e]) - (n * row.projection + row.gradient_mean)) * row.scale;
      }
      store<V>(op.out, at + c, x);
    }
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const std::int64_t sum = block_x() * op.dim + c + e;
      if (op.dweight) op.dweight[sum] += dweight[e];
      if (op.dbias) op.dbias[sum] += dbias[e];
    }
  }
}

// A block takes groups of kNormWarps rows, blocks_x() groups apart.
template <bool kCenter, int V, class T>
MEGALODON_KERNEL void norm_backward_kernel(NormArgs<T> op) {
  using A = Acc<T>;
  SharedMemory memory;
  const Shared<RowStatistics<A>> statistics = memory.take<RowStatistics<A>>(kNormWarps);
  for (std::int64_t c = thread_index(); c < op.dim; c += block_threads()) {
    if (op.dweight) op.dweight[block_x() * op.dim + c] = 0;
    if (op.dbias) op.dbias[block_x() * op.dim + c] = 0;
  }
  for (std::int64_t first = block_x() * kNormWarps; first < op.rows; first += blocks_x() * kNormWarps) {
    block_barrier();
    const std::int64_t row = first + warp_index();
    if (row < op.rows) {
      RowStatistics<A> found = read_row<kCenter, V>(op, row * op.dim);
      read_gradient<kCenter, V>(op, row * op.dim, found);
      if (lane_index() == 0) statistics[warp_index()] = found;
    }
    block_barrier();
    const std::int64_t left = op.rows - first;
    write_gradients<V>(op, first, static_cast<int>(left < kNormWarps ? left : kNormWarps), statistics);
  }
}

}  // namespace megalodon::cuda
