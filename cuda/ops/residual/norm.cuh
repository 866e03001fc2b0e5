// rms_norm, layer_norm and add_layer_norm. A team of warps has a row. Where it has a lane for each two
// accesses to the row, the lanes keep it in registers from the one time it is read (kHeld). A longer row is
// read again each time, from the cache.
#pragma once

#include "common/reduce.cuh"
#include "common/types.cuh"

namespace megalodon::cuda {

inline constexpr int kBlockWarps = 4;  // of a block of several teams
inline constexpr int kMostRowWarps = 32;
inline constexpr int kForwardPacks = 2, kBackwardPacks = 1;

template <class T>
struct NormArgs {
  Global<const T> x, residual;        // (rows, dim), residual may be absent
  Global<const Acc<T>> weight, bias;  // (dim,) or absent
  Global<const T> dy;                 // backward
  Global<T> out;                      // y or dx
  Global<Acc<T>> dweight, dbias;      // backward: (teams, dim) sums, or absent
  std::int64_t rows, dim;
  int warps;  // of a team: a power of two
  bool center;
  Acc<T> eps;
};

struct Team {
  int warps, first, count, index, lane;  // its first warp; teams of the block; this one, and the thread in it
};

template <class T>
MEGALODON_DEVICE Team team_of(const NormArgs<T>& op) {
  const int threads = op.warps * kWarp, index = thread_index() / threads;
  return {op.warps, index * op.warps, block_threads() / threads, index, thread_index() % threads};
}

// Sums over a team, in a fixed order and with the same bits in all its threads. All teams of a block call it
// together; `scratch` has kMostRowWarps N elements.
template <int N, class A>
MEGALODON_DEVICE void team_sums(const Team& team, const Shared<A>& scratch, A (&values)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) values[n] = warp_sum(values[n]);
  if (team.warps == 1) return;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (lane_index() == 0) scratch[warp_index() * N + n] = values[n];
  }
  block_barrier();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    values[n] = scratch[team.first * N + n];
    for (int warp = 1; warp < team.warps; ++warp) values[n] += scratch[(team.first + warp) * N + n];
  }
  block_barrier();
}

// A row, and what a lane keeps of it: x, or x + residual, and in backward dy.
template <int kPacks, int V, class A>
struct Row {
  std::int64_t begin;
  bool exists;
  A x[kPacks > 0 ? kPacks : 1][V], dy[kPacks > 0 ? kPacks : 1][V];
};

// f(n, c) for the thread's columns c, c + 1, ..., c + V - 1 of a row; n < kPacks counts them.
template <int kPacks, int V, class F>
MEGALODON_DEVICE void for_columns(const Team& team, std::int64_t dim, const F& f) {
  const std::int64_t step = std::int64_t{team.warps} * kWarp * V;
  std::int64_t c = team.lane * V;
  if constexpr (kPacks > 0) {
#pragma unroll
    for (int n = 0; n < kPacks; ++n, c += step) {
      if (c < dim) f(n, c);
    }
  } else {
    for (; c < dim; c += step) f(0, c);
  }
}

// V values of x, or of x + residual.
template <int V, class T, class A = Acc<T>>
MEGALODON_DEVICE void add_residual(const NormArgs<T>& op, const Pack<T, V>& x, const Pack<T, V>& residual,
                                   A (&to)[V]) {
  unpack(x, to);
  if (!op.residual) return;
  A more[V];
  unpack(residual, more);
#pragma unroll
  for (int e = 0; e < V; ++e) to[e] += more[e];
}

// Of an access that no lane keeps.
template <int V, class T, class A = Acc<T>>
MEGALODON_DEVICE void load_sum(const NormArgs<T>& op, std::int64_t i, A (&to)[V]) {
  const auto x = load_pack<V>(op.x, i);
  add_residual(op, x, op.residual ? load_pack<V>(op.residual, i) : x, to);
}

// All reads of a lane are under way before it waits for the first.
template <int kPacks, int V, bool kBackward, class T, class A = Acc<T>>
MEGALODON_DEVICE Row<kPacks, V, A> read_row(const NormArgs<T>& op, const Team& team, std::int64_t i) {
  Row<kPacks, V, A> row{.begin = i * op.dim, .exists = i < op.rows};
  if constexpr (kPacks > 0) {
    const std::int64_t dim = row.exists ? op.dim : 0;
    Pack<T, V> x[kPacks], residual[kPacks];
    for_columns<kPacks, V>(team, dim, [&](int n, std::int64_t c) {
      x[n] = load_pack<V>(op.x, row.begin + c);
      if (op.residual) residual[n] = load_pack<V>(op.residual, row.begin + c);
      if constexpr (kBackward) load<V>(op.dy, row.begin + c, row.dy[n]);
    });
    for_columns<kPacks, V>(team, dim,
                           [&](int n, std::int64_t) { add_residual(op, x[n], residual[n], row.x[n]); });
  }
  return row;
}

// f(n, c, x) for the thread's columns of a row.
template <int kPacks, int V, class T, class A, class F>
MEGALODON_DEVICE void for_values(const NormArgs<T>& op, const Team& team, const Row<kPacks, V, A>& row,
                                 const F& f) {
  for_columns<kPacks, V>(team, row.exists ? op.dim : 0, [&](int n, std::int64_t c) {
    if constexpr (kPacks > 0) {
      f(n, c, row.x[n]);
    } else {
      A x[V];
      load_sum<V>(op, row.begin + c, x);
      f(n, c, x);
    }
  });
}

// V values of a parameter, `absent` where it is not given.
template <int V, class A>
MEGALODON_DEVICE void load_parameter(const Global<const A>& from, std::int64_t c, A absent, A (&to)[V]) {
#pragma unroll
  for (int e = 0; e < V; ++e) to[e] = absent;
  if (from) load<V>(from, c, to);
}

// The normalized row is (x - mean) scale + shift.
template <class A>
struct RowStatistics {
  A mean, scale, shift;
};

template <class A>
MEGALODON_DEVICE A normalized(const RowStatistics<A>& row, A x) {
  return (x - row.mean) * row.scale + row.shift;
}

// The mean first and then squares of deviations: a one-pass variance would lose every digit when the mean is
// large beside the deviation. What rounding of the mean leaves, the mean of the centred row, is taken out
// too.
template <int kPacks, int V, class T, class A = Acc<T>>
MEGALODON_DEVICE RowStatistics<A> measure_row(const NormArgs<T>& op, const Team& team,
                                              const Row<kPacks, V, A>& row, const Shared<A>& scratch) {
  const A inverse = A(1) / static_cast<A>(op.dim);
  A sum[1] = {};
  if (op.center) {
    for_values(op, team, row, [&](int, std::int64_t, const A(&x)[V]) {
#pragma unroll
      for (int e = 0; e < V; ++e) sum[0] += x[e];
    });
    team_sums(team, scratch, sum);
  }
  const A mean = sum[0] * inverse;
  A rest[2] = {};  // sums of deviations and of their squares
  for_values(op, team, row, [&](int, std::int64_t, const A(&x)[V]) {
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const A deviation = x[e] - mean;
      rest[0] += deviation;
      rest[1] += deviation * deviation;
    }
  });
  team_sums(team, scratch, rest);
  const A remainder = op.center ? rest[0] * inverse : A(0);
  const A scale = A(1) / std::sqrt(rest[1] * inverse - remainder * remainder + op.eps);
  return {mean, scale, -remainder * scale};
}

template <int kPacks, int V, class T>
MEGALODON_KERNEL MEGALODON_RESIDENT(kMostRowWarps* kWarp, 1) void norm_forward_kernel(NormArgs<T> op) {
  using A = Acc<T>;
  SharedMemory memory;
  const Shared<A> scratch = memory.take<A>(kMostRowWarps * 2);
  const Team team = team_of(op);
  const auto row = read_row<kPacks, V, false>(op, team, block_x() * team.count + team.index);
  const RowStatistics<A> statistics = measure_row(op, team, row, scratch);
  for_values(op, team, row, [&](int, std::int64_t c, const A(&x)[V]) {
    A weight[V], bias[V], y[V];
    load_parameter<V>(op.weight, c, A(1), weight);
    load_parameter<V>(op.bias, c, A(0), bias);
#pragma unroll
    for (int e = 0; e < V; ++e) y[e] = normalized(statistics, x[e]) * weight[e] + bias[e];
    store<V>(op.out, row.begin + c, y);
  });
}

}  // namespace megalodon::cuda
