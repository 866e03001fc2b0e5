// Gradients of parameters: each block leaves one row of sums in the workspace, and a second kernel adds the
// rows in a fixed order. No atomics, so the same call gives the same bits.
#pragma once

#include "common/reduce.cuh"
#include "common/run.cuh"

namespace megalodon::cuda {

template <class A>
struct ColumnSums {
  Global<const A> part;  // (parts, columns)
  Global<A> sum;         // (columns,)
  std::int64_t parts, columns;
};

inline constexpr int kSumWarps = 8;

// A block adds 32 columns, each of its warps every eighth row.
template <class A>
MEGALODON_KERNEL void add_columns(ColumnSums<A> op) {
  const std::int64_t c = block_x() * kWarp + lane_index();
  SharedMemory memory;
  const Shared<double> sums = memory.take<double>(kSumWarps * kWarp);
  double sum = 0;
  if (c < op.columns) {
    for (std::int64_t i = warp_index(); i < op.parts; i += kSumWarps) sum += op.part[i * op.columns + c];
  }
  sums[thread_index()] = sum;
  block_barrier();
  if (warp_index() != 0 || c >= op.columns) return;
  for (int warp = 1; warp < kSumWarps; ++warp) sum += sums[warp * kWarp + lane_index()];
  op.sum[c] = static_cast<A>(sum);
}

// Does nothing where the gradient is absent.
template <class A>
void finish_columns(Run& run, Global<A> part, Global<A> sum, std::int64_t parts, std::int64_t columns) {
  if (!sum) return;
  run.launch(add_columns<A>, {divide_up(columns, kWarp)}, kSumWarps * kWarp,
             shared_size<double>(kSumWarps * kWarp), ColumnSums<A>{part, sum, parts, columns});
}

}  // namespace megalodon::cuda
