// Gradients of parameters: each block leaves one row of sums in the workspace, and a second kernel adds the
// rows in a fixed order. No atomics, so the same call gives the same bits.
#pragma once

#include "common/reduce.cuh"
#include "common/run.cuh"

namespace megalodon::cuda {

template <class A>
struct ColumnSums {
  Global<const A> part;  // (parts, inner, dim)
  Global<A> sum;         // (dim, inner)
  std::int64_t parts, dim, inner;
};

inline constexpr int kSumWarps = 8;

// A block adds 32 columns, each of its warps every eighth row.
template <class A>
MEGALODON_KERNEL void add_columns(ColumnSums<A> op) {
  const std::int64_t c = block_x() * kWarp + lane_index();
  const std::int64_t columns = op.dim * op.inner;
  SharedMemory memory;
  const Shared<double> sums = memory.take<double>(kSumWarps * kWarp);
  double sum = 0;
  if (c < columns) {
    for (std::int64_t i = warp_index(); i < op.parts; i += kSumWarps) sum += op.part[i * columns + c];
  }
  sums[thread_index()] = sum;
  block_barrier();
  if (warp_index() != 0 || c >= columns) return;
  for (int warp = 1; warp < kSumWarps; ++warp) sum += sums[warp * kWarp + lane_index()];
  op.sum[c % op.dim * op.inner + c / op.dim] = static_cast<A>(sum);
}

// Does nothing where the gradient is absent. Kernels write the dim axis last, so that neighbours lie
// together.
template <class A>
void finish_columns(Run& run, Global<A> part, Global<A> sum, std::int64_t parts, std::int64_t dim,
                    std::int64_t inner = 1) {
  if (!sum) return;
  run.launch(add_columns<A>, {divide_up(dim * inner, kWarp)}, kSumWarps * kWarp,
             shared_size<double>(kSumWarps * kWarp), ColumnSums<A>{part, sum, parts, dim, inner});
}

}  // namespace megalodon::cuda
