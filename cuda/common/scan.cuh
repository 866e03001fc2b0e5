// Prefixes over the threads of a block.
#pragma once

#include <cstdint>

#include "common/reduce.cuh"

namespace megalodon::cuda {

struct Prefix {
  std::int64_t inclusive;  // of this thread's value and all before it
  std::int64_t total;
};

// `warps` has one element per warp. The whole block calls it, and may call it again with the same memory.
template <class Combine>
MEGALODON_DEVICE Prefix block_scan(std::int64_t value, const Shared<std::int64_t>& warps,
                                   const Combine& combine) {
  const int lane = lane_index();
  for (int step = 1; step < kWarp; step *= 2) {
    const std::int64_t before = warp_shuffle(value, lane >= step ? lane - step : lane);
    if (lane >= step) value = combine(before, value);
  }
  if (lane == kWarp - 1) warps[warp_index()] = value;
  block_barrier();
  std::int64_t total = warps[0];
  if (warp_index() == 1) value = combine(total, value);
  for (int warp = 1; warp < block_threads() / kWarp; ++warp) {
    total = combine(total, warps[warp]);
    if (warp_index() == warp + 1) value = combine(total, value);
  }
  block_barrier();
  return {value, total};
}

}  // namespace megalodon::cuda
