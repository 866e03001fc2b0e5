// Sums in a fixed order.
#pragma once

#include "common/device.cuh"

namespace megalodon::cuda {

MEGALODON_DEVICE int lane_index() { return thread_index() % kWarp; }
MEGALODON_DEVICE int warp_index() { return thread_index() / kWarp; }

// The sum over the warp, the same bits in every lane.
template <class A>
MEGALODON_DEVICE A warp_sum(A value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += warp_shuffle(value, lane_index() ^ step);
  return value;
}

}  // namespace megalodon::cuda
