// One token per sequence: nothing runs along time. 16 lanes share a channel, so that its coefficients and its
// state are read as they lie in memory.
#pragma once

#include "ops/cema/scan.cuh"

namespace megalodon::cuda {

inline constexpr int kStepThreads = 256;
inline constexpr int kStepLanes = 16;
inline constexpr int kStepChannels = kStepThreads / kStepLanes;

template <class T, template <class> class N>
MEGALODON_KERNEL void cema_step(CemaArgs<T, N> op) {
  using A = Acc<T>;
  const std::int64_t i = block_x() * kStepChannels + thread_index() / kStepLanes;
  const std::int64_t s = i / op.dim, d = i % op.dim;
  const bool exists = s < op.tiles.sequences.count;
  const bool unpadded = exists && sequence_at(op.tiles.sequences, s).length == 1;
  const A x = unpadded ? A(read(token(op.x, s, 0)[d])) : A(0);
  A y = 0;
  for (std::int64_t k = thread_index() % kStepLanes; exists && k < op.ndim; k += kStepLanes) {
    const std::int64_t coefficient = d * op.ndim + k, state = i * op.ndim + k;
    N<A> h{};
    if (op.initial) h = load_coefficient<N<A>>(op.initial, state);
    if (unpadded) {
      h = add(multiply(load_coefficient<N<A>>(op.q, coefficient), h), from_real<N<A>>(op.p[coefficient]), x);
      y += real_product(load_coefficient<N<A>>(op.gamma, coefficient), h);
    }
    store_number(op.final_state, state * N<A>::parts, h);
  }
#pragma unroll
  for (int step = kStepLanes / 2; step > 0; step /= 2) y += warp_shuffle(y, lane_index() ^ step);
  if (!exists || thread_index() % kStepLanes != 0) return;
  write(token(op.y, s, 0)[d], op.omega ? y + op.omega[d] * x : y);
}

// For sequences of one token or none, not packed. What is padding becomes 0 here.
template <class T, template <class> class N>
void step(Run& run, const CemaArgs<T, N>& args) {
  const std::int64_t channels = args.tiles.sequences.count * args.dim;
  run.launch(cema_step<T, N>, {divide_up(channels, kStepChannels)}, kStepThreads, 0, args);
}

}  // namespace megalodon::cuda
