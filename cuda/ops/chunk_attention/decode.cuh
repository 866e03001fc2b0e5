// One token per sequence, after a state. The keys are cut into slices: a block has one slice of one head,
// makes the query, scores its keys, and sums its values under the softmax of the slice; then the slices are
// joined in their order. So a few sequences fill a GPU, and every key and value is read once.
//
// The block that reads a key or value also moves it to the final state. In the memory of the initial one
// (donated) that is only the new one, and zeros once a chunk is full.
#pragma once

#include "megalodon/math/philox.h"
#include "ops/chunk_attention/rotary.cuh"

namespace megalodon::cuda {

inline constexpr int kDecodeThreads = 256;
inline constexpr int kDecodeWarps = kDecodeThreads / kWarp;
inline constexpr int kSliceKeys = 64;
inline constexpr int kKeysPerWarp = 4;  // that a warp reads at a time

// Of an array of the state: (sequences, capacity, H, width) before and after the call.
template <class A>
struct StateArray {
  Global<const A> initial;
  Global<A> final;
  std::int64_t width;
};

template <class T>
struct DecodeArgs {
  using A = Acc<T>;
  Sequences sequences;
  Heads<const T> q, k, v;       // of the token; normalized attention: q is z, and k is absent
  Global<const A> gamma, beta;  // normalized attention: (2, H, Dz)
  Global<const std::int64_t> initial_length;
  StateArray<A> keys, values;
  Global<std::int64_t> final_length;
  Heads<T> y;
  Global<A> statistics, sums;  // of the slices: (sequences, H, slices, 2): maximum and sum; (..., Dv)
  std::int64_t head_count, capacity, final_capacity, chunk, slices;
  bool in_place;
  double base;
  A eps, scale;
  std::uint32_t threshold, seed_low, seed_high;  // of dropout; threshold 0 drops nothing
};

// A head of a sequence.
struct DecodeHead {
  std::int64_t s, h, time;  // time: of the token
  Sequence sequence;
  std::int64_t filled;  // keys of the initial state
  std::int64_t keys;    // with that of the token, where there is one
  std::int64_t kept;    // slots of the final state that are filled
};

template <class T>
MEGALODON_DEVICE DecodeHead decode_head(const DecodeArgs<T>& op, std::int64_t i) {
  DecodeHead at{.s = i / op.head_count, .h = i % op.head_count};
  at.sequence = sequence_at(op.sequences, at.s);
  at.filled = op.initial_length ? op.initial_length[at.s] : 0;
  if (at.filled < 0 || at.filled > op.capacity) at.filled = 0;  // wrong, but must not lead out of memory
  at.keys = at.filled;
  if (at.sequence.length > 0) {
    at.time = time_of(op.sequences, at.sequence, 0);
    ++at.keys;
  }
  at.kept = at.keys < op.chunk ? at.keys : 0;
  return at;
}

MEGALODON_DEVICE bool has_token(const DecodeHead& at) { return at.keys > at.filled; }

template <class E>
MEGALODON_DEVICE Global<E> row_of(const Heads<E>& array, const DecodeHead& at) {
  return array.data +
         (at.sequence.row * array.row_stride + at.time * array.time_stride + at.h * array.head_stride);
}

// Where slot j of a state with this capacity begins.
template <class T>
MEGALODON_DEVICE std::int64_t slot_at(const DecodeArgs<T>& op, const DecodeHead& at, std::int64_t capacity,
                                      std::int64_t width, std::int64_t j) {
  return ((at.s * capacity + j) * op.head_count + at.h) * width;
}

// What the threads of a block share.
template <class A>
struct DecodeMemory {
  Shared<A> query, key;  // (Dz,): the token's; of the key only in the block that has its slot
  Shared<A> weights;     // (kSliceKeys,): scores, then exp(score - maximum)
  Shared<A> warps;       // (warps,)
};

template <class A>
constexpr std::int64_t decode_bytes(std::int64_t key_dim) {
  return 2 * shared_size<A>(key_dim) + shared_size<A>(kSliceKeys) + shared_size<A>(kDecodeWarps);
}

template <class A>
MEGALODON_DEVICE DecodeMemory<A> take_decode_memory(SharedMemory& memory, std::int64_t key_dim) {
  DecodeMemory<A> decode;
  decode.query = memory.take<A>(static_cast<int>(key_dim));
  decode.key = memory.take<A>(static_cast<int>(key_dim));
  decode.weights = memory.take<A>(kSliceKeys);
  decode.warps = memory.take<A>(kDecodeWarps);
  return decode;
}

// rsqrt(mean(z^2) + eps), by the block.
template <class T, class A = Acc<T>>
MEGALODON_DEVICE A decode_scale(const DecodeArgs<T>& op, const Global<const T>& z, const Shared<A>& warps) {
  A squares = 0;
  for (std::int64_t d = thread_index(); d < op.keys.width; d += kDecodeThreads) {
    const A value = read(z[d]);
    squares += value * value;
  }
  squares = warp_sum(squares);
  if (lane_index() == 0) warps[warp_index()] = squares;
  block_barrier();
  A sum = 0;
  for (int warp = 0; warp < kDecodeWarps; ++warp) sum += warps[warp];
  return A(1) / std::sqrt(sum / static_cast<A>(op.keys.width) + op.eps);
}

// Leaves the query and the key of the token in memory. Ends with a barrier.
template <class T, class A = Acc<T>>
MEGALODON_DEVICE void make_query(const DecodeArgs<T>& op, const DecodeHead& at,
                                 const DecodeMemory<A>& memory) {
  const std::int64_t dim = op.keys.width;
  const Global<const T> q = row_of(op.q, at);
  if (!op.gamma) {
    const Global<const T> k = row_of(op.k, at);
    for (std::int64_t d = thread_index(); d < dim; d += kDecodeThreads) {
      memory.query[d] = read(q[d]);
      memory.key[d] = read(k[d]);
    }
  } else {
    const A scale = decode_scale(op, q, memory.warps);
    for (std::int64_t pair = thread_index(); pair < dim / 2; pair += kDecodeThreads) {
      const std::int64_t d = 2 * pair, first = at.h * dim + d, second = op.head_count * dim + first;
      const Turn<A> by = turn<A>(at.filled, math::rope_frequency(op.base, pair, dim));
      const A x = A(read(q[d])) * scale, y = A(read(q[d + 1])) * scale;
      const A qx = x * op.gamma[first] + op.beta[first], qy = y * op.gamma[first + 1] + op.beta[first + 1];
      const A kx = x * op.gamma[second] + op.beta[second],
              ky = y * op.gamma[second + 1] + op.beta[second + 1];
      memory.query[d] = qx * by.cosine - qy * by.sine;
      memory.query[d + 1] = qx * by.sine + qy * by.cosine;
      memory.key[d] = kx * by.cosine - ky * by.sine;
      memory.key[d + 1] = kx * by.sine + ky * by.cosine;
    }
  }
  block_barrier();
}

template <class T>
MEGALODON_DEVICE bool is_dropped(const DecodeArgs<T>& op, const DecodeHead& at, std::int64_t key) {
  if (op.threshold == 0) return false;
  const auto word = [](std::int64_t value) { return static_cast<std::uint32_t>(value); };
  return math::philox4x32_10(word(key), word(at.filled), word(at.h), word(at.s), op.seed_low, op.seed_high) <
         op.threshold;
}

// Slots [first, last) of a slice that hold keys of the initial state, and whether they move to another array.
struct Slice {
  std::int64_t first, last;
  bool copied;
};

// Leaves the scores of the slice's keys in memory.weights.
template <int V, class T, class A = Acc<T>>
MEGALODON_DEVICE void score_keys(const DecodeArgs<T>& op, const DecodeHead& at, const Slice& slice,
                                 const DecodeMemory<A>& memory) {
  const std::int64_t dim = op.keys.width;
  for (std::int64_t key = slice.first + warp_index() * kKeysPerWarp; key < slice.last;
       key += kDecodeWarps * kKeysPerWarp) {
    A score[kKeysPerWarp] = {};
    for (std::int64_t d = lane_index() * V; d < dim; d += kWarp * V) {
      A k[kKeysPerWarp][V];
#pragma unroll
      for (int n = 0; n < kKeysPerWarp; ++n) {
        if (key + n < slice.last)
          load<V>(op.keys.initial, slot_at(op, at, op.capacity, dim, key + n) + d, k[n]);
      }
#pragma unroll
      for (int n = 0; n < kKeysPerWarp; ++n) {
        if (key + n >= slice.last) continue;
#pragma unroll
        for (int e = 0; e < V; ++e) score[n] += memory.query[d + e] * k[n][e];
        if (slice.copied) store<V>(op.keys.final, slot_at(op, at, op.final_capacity, dim, key + n) + d, k[n]);
      }
    }
#pragma unroll
    for (int n = 0; n < kKeysPerWarp; ++n) {
      const A sum = warp_sum(score[n]);
      if (lane_index() == 0 && key + n < slice.last) {
        memory.weights[key + n - slice.first] =
            is_dropped(op, at, key + n) ? -static_cast<A>(INFINITY) : sum * op.scale;
      }
    }
  }
}

// The score of the token's own key, which a warp writes to the final state.
template <class T, class A = Acc<T>>
MEGALODON_DEVICE void score_token(const DecodeArgs<T>& op, const DecodeHead& at, const Slice& slice,
                                  const DecodeMemory<A>& memory) {
  const std::int64_t dim = op.keys.width;
  A score = 0;
  for (std::int64_t d = lane_index(); d < dim; d += kWarp) {
    score += memory.query[d] * memory.key[d];
    if (at.filled < at.kept) {
      op.keys.final[slot_at(op, at, op.final_capacity, dim, at.filled) + d] = memory.key[d];
    }
  }
  score = warp_sum(score);
  if (lane_index() == 0) {
    memory.weights[at.filled - slice.first] =
        is_dropped(op, at, at.filled) ? -static_cast<A>(INFINITY) : score * op.scale;
  }
}

template <class A>
struct SliceSoftmax {
  A maximum, sum;
};

// Turns the scores of `count` keys into weights. Every warp finds the same ones, one leaves them in memory.
template <class A>
MEGALODON_DEVICE SliceSoftmax<A> weigh_keys(const DecodeMemory<A>& memory, int count) {
  constexpr int kEach = kSliceKeys / kWarp;
  const A lowest = -static_cast<A>(INFINITY);
  A score[kEach], weight[kEach], highest = lowest, sum = 0;
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    const int key = n * kWarp + lane_index();
    score[n] = key < count ? memory.weights[key] : lowest;
    if (score[n] > highest) highest = score[n];
  }
  const A maximum = warp_max(highest);
#pragma unroll
  for (int n = 0; n < kEach; ++n) {
    weight[n] = score[n] == lowest ? A(0) : std::exp(score[n] - maximum);
    sum += weight[n];
  }
  block_barrier();
  if (warp_index() == 0) {
#pragma unroll
    for (int n = 0; n < kEach; ++n) memory.weights[n * kWarp + lane_index()] = weight[n];
  }
  block_barrier();
  return {maximum, warp_sum(sum)};
}

// The sum of the slice's values under their weights, V columns per thread.
template <int V, class T, class A = Acc<T>>
MEGALODON_DEVICE void sum_values(const DecodeArgs<T>& op, const DecodeHead& at, const Slice& slice,
                                 bool has_own, std::int64_t part, const DecodeMemory<A>& memory) {
  const std::int64_t dim = op.values.width, step = op.head_count * dim;
  for (std::int64_t c = thread_index() * V; c < dim; c += kDecodeThreads * V) {
    A sum[V] = {}, value[V];
    const auto take = [&](std::int64_t key) {
      const A weight = memory.weights[key - slice.first];
#pragma unroll
      for (int e = 0; e < V; ++e) sum[e] += weight != 0 ? weight * value[e] : A(0);
    };
    std::int64_t from = slot_at(op, at, op.capacity, dim, slice.first) + c;
    std::int64_t to = slot_at(op, at, op.final_capacity, dim, slice.first) + c;
#pragma unroll 8
    for (std::int64_t key = slice.first; key < slice.last; ++key, from += step, to += step) {
      load<V>(op.values.initial, from, value);
      if (slice.copied) store<V>(op.values.final, to, value);
      take(key);
    }
    if (has_own) {
      const Global<const T> v = row_of(op.v, at);
#pragma unroll
      for (int e = 0; e < V; ++e) value[e] = read(v[c + e]);
      if (at.filled < at.kept) {
        store<V>(op.values.final, slot_at(op, at, op.final_capacity, dim, at.filled) + c, value);
      }
      take(at.filled);
    }
    store<V>(op.sums, part * dim + c, sum);
  }
}

// Zeros in slots [first, last) of the final state.
template <int V, class T>
MEGALODON_DEVICE void clear_slots(const DecodeArgs<T>& op, const DecodeHead& at,
                                  const StateArray<Acc<T>>& state, std::int64_t first, std::int64_t last) {
  const Acc<T> zeros[V] = {};
  for (std::int64_t slot = first; slot < last; ++slot) {
    for (std::int64_t c = thread_index() * V; c < state.width; c += kDecodeThreads * V) {
      store<V>(state.final, slot_at(op, at, op.final_capacity, state.width, slot) + c, zeros);
    }
  }
}

template <int V, class T>
MEGALODON_KERNEL void decode_slices(DecodeArgs<T> op) {
  using A = Acc<T>;
  SharedMemory shared;
  const DecodeMemory<A> memory = take_decode_memory<A>(shared, op.keys.width);
  const DecodeHead at = decode_head(op, block_x() / op.slices);
  const std::int64_t first = block_x() % op.slices * kSliceKeys, end = first + kSliceKeys;
  const Slice slice{first, at.filled < end ? at.filled : end, !op.in_place && at.kept > 0};
  const bool has_own = has_token(at) && first <= at.filled && at.filled < end;
  if (block_x() % op.slices == 0 && at.h == 0 && thread_index() == 0) op.final_length[at.s] = at.kept;
  if (has_own || slice.first < slice.last) {
    if (has_token(at)) make_query(op, at, memory);
    score_keys<V>(op, at, slice, memory);
    if (has_own && warp_index() == kDecodeWarps - 1) score_token(op, at, slice, memory);
    block_barrier();
    const SliceSoftmax<A> softmax = weigh_keys(memory, static_cast<int>(slice.last - first) + has_own);
    if (thread_index() == 0) {
      op.statistics[block_x() * 2] = softmax.maximum;
      op.statistics[block_x() * 2 + 1] = softmax.sum;
    }
    sum_values<V>(op, at, slice, has_own, block_x(), memory);
  }
  block_barrier();  // every key and value is read before it is cleared
  const std::int64_t used = op.in_place ? at.filled : op.final_capacity;
  const std::int64_t empty = at.kept > first ? at.kept : first, last = used < end ? used : end;
  clear_slots<V>(op, at, op.keys, empty, last);
  clear_slots<V>(op, at, op.values, empty, last);
}

// y of 32 columns of a head: each warp joins every eighth slice.
template <class T>
MEGALODON_KERNEL void join_slices(DecodeArgs<T> op) {
  using A = Acc<T>;
  SharedMemory shared;
  const Shared<A> sums = shared.take<A>(kDecodeThreads), totals = shared.take<A>(kDecodeWarps);
  const DecodeHead at = decode_head(op, block_x());
  if (!has_token(at)) return;
  const std::int64_t c = block_y() * kWarp + lane_index(), dim = op.values.width;
  const std::int64_t slices = (at.keys + kSliceKeys - 1) / kSliceKeys, first = block_x() * op.slices;
  A maximum = -static_cast<A>(INFINITY);
  for (std::int64_t i = lane_index(); i < slices; i += kWarp) {
    const A other = op.statistics[(first + i) * 2];
    if (other > maximum) maximum = other;
  }
  maximum = warp_max(maximum);
  A sum = 0, total = 0;
  for (std::int64_t i = warp_index(); i < slices; i += kDecodeWarps) {
    const A own = op.statistics[(first + i) * 2];
    const A factor = own == maximum ? A(1) : std::exp(own - maximum);
    total += factor * op.statistics[(first + i) * 2 + 1];
    if (c < dim) sum += factor * op.sums[(first + i) * dim + c];
  }
  sums[thread_index()] = sum;
  if (lane_index() == 0) totals[warp_index()] = total;
  block_barrier();
  if (warp_index() != 0 || c >= dim) return;
  for (int warp = 1; warp < kDecodeWarps; ++warp) {
    sum += sums[warp * kWarp + lane_index()];
    total += totals[warp];
  }
  write(row_of(op.y, at)[c], total == 0 ? A(0) : sum / total);  // 0 where the query saw nothing
}

// Queues both kernels; args.statistics and args.sums are made here. A vector is of a state's elements.
template <int V, class T>
void run_decode(Run& run, DecodeArgs<T> args) {
  using A = Acc<T>;
  const std::int64_t heads = args.sequences.count * args.head_count, blocks = heads * args.slices;
  args.statistics = run.workspace<A>(blocks * 2);
  args.sums = run.workspace<A>(blocks * args.values.width);
  run.launch(decode_slices<V, T>, {blocks}, kDecodeThreads, decode_bytes<A>(args.keys.width), args);
  run.launch(join_slices<T>, {heads, divide_up(args.values.width, kWarp)}, kDecodeThreads,
             shared_size<A>(kDecodeThreads) + shared_size<A>(kDecodeWarps), args);
}

}  // namespace megalodon::cuda
