// The final state of attention, and what comes back through it.
#pragma once

#include "ops/chunk_attention/attention.cuh"

namespace megalodon::cuda {

inline constexpr int kStateThreads = 128;

// The final state: keys and values of the unfinished chunk, zeros in empty slots.
template <class T>
struct FinalArgs {
  AttentionArgs<T> attention;
  Global<Acc<T>> k, v;  // (sequences, capacity, H, width)
  Global<std::int64_t> length;
};

// A warp copies one slot of one head.
template <class T>
MEGALODON_KERNEL void final_state(FinalArgs<T> op) {
  using A = Acc<T>;
  const AttentionArgs<T>& from = op.attention;
  const std::int64_t i = block_x() * (kStateThreads / kWarp) + warp_index(), h = i % from.head_count;
  const std::int64_t slots = from.final_capacity > 0 ? from.final_capacity : 1;  // one writes the length
  const std::int64_t slot = i / from.head_count % slots, s = i / from.head_count / slots;
  if (s >= from.tiles.sequences.count) return;
  const Place at = place_of(from, s, h);
  const std::int64_t length = at.total % from.chunk, position = at.total - length + slot;
  if (slot == 0 && h == 0 && lane_index() == 0) op.length[s] = length;
  if (from.final_capacity == 0) return;
  for (std::int64_t d = lane_index(); d < from.key_dim; d += kWarp) {
    op.k[i * from.key_dim + d] =
        slot < length ? at_key(from, from.k, from.initial_k, from.key_dim, at, position, d) : A(0);
  }
  for (std::int64_t d = lane_index(); d < from.value_dim; d += kWarp) {
    op.v[i * from.value_dim + d] =
        slot < length ? at_key(from, from.v, from.initial_v, from.value_dim, at, position, d) : A(0);
  }
}

// What came back through a part of the final state, `gradient` (sequences, capacity, H, width), to a key; 0
// where the state takes no part in the loss.
template <class T>
MEGALODON_DEVICE Acc<T> through_state(const AttentionArgs<T>& op, const Global<const Acc<T>>& gradient,
                                      std::int64_t width, const Place& at, std::int64_t key, std::int64_t c) {
  const std::int64_t slot = key - (at.total - at.total % op.chunk);
  if (!gradient || slot < 0 || key >= at.total) return 0;
  return gradient[((at.s * op.final_capacity + slot) * op.head_count + at.h) * width + c];
}

template <class T>
struct ClearSlotsArgs {
  AttentionArgs<T> attention;
  Global<float> out;  // (sequences, P, H, width)
  std::int64_t width;
};

// The gradient of an empty slot of the initial state is 0. A warp has one slot of one head.
template <class T>
MEGALODON_KERNEL void clear_slots_kernel(ClearSlotsArgs<T> op) {
  const AttentionArgs<T>& from = op.attention;
  const std::int64_t i = block_x() * (kStateThreads / kWarp) + warp_index(), h = i % from.head_count;
  const std::int64_t slot = i / from.head_count % from.capacity, s = i / from.head_count / from.capacity;
  if (s >= from.tiles.sequences.count || slot < place_of(from, s, h).filled) return;
  for (std::int64_t d = lane_index(); d < op.width; d += kWarp) op.out[i * op.width + d] = 0;
}

template <class T>
void clear_slots(Run& run, const AttentionArgs<T>& args, Global<float> out, std::int64_t width) {
  const std::int64_t slots = args.tiles.sequences.count * args.capacity * args.head_count;
  if (!out || slots == 0) return;
  run.launch(clear_slots_kernel<T>, {divide_up(slots, kStateThreads / kWarp)}, kStateThreads, 0,
             ClearSlotsArgs<T>{args, out, width});
}

}  // namespace megalodon::cuda
