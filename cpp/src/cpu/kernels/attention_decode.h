// One token per sequence, with a state: every key and value is read once, in place, nothing is packed, and
// each row is copied to the final state as it comes by, unless it is there already.
//
// Scores are shared out by blocks of keys, then values by blocks of columns, so that one sequence of one head
// keeps several threads busy.
#pragma once

#include "cpu/kernels/arena.h"
#include "cpu/kernels/attention_rows.h"
#include "cpu/kernels/attention_state.h"
#include "cpu/kernels/softmax.h"

namespace megalodon::cpu::MEGALODON_TARGET {

inline constexpr std::int64_t kDecodeKeys = 256;
inline constexpr std::int64_t kDecodeColumns = 512;

// What one thread works in.
template <class A>
struct DecodeSpace {
  A *query, *weights, *result;

  DecodeSpace(Arena<A>& arena, std::int64_t key_dim, std::int64_t keys)
      : query(arena.take(round_up(key_dim, kLanes<A>))),
        weights(arena.take(round_up(keys, kLanes<A>))),
        result(arena.take(kDecodeColumns)) {}
};

template <class A>
class Decode {
 public:
  Decode(const ChunkAttentionForward& op, const SequenceSpan& sequences, int threads)
      : op_(op),
        sequences_(sequences),
        threads_(threads),
        in_place_(in_place(op)),
        heads_(op.v.size(2)),
        pitch_(round_up(most_keys(op, sequences), kLanes<A>)),
        scores_(sequences.count * heads_ * pitch_),
        spaces_(threads, op.k.size(3), pitch_) {}

  void run() const {
    for_blocks(pitch_, kDecodeKeys, [&](const Chunk& chunk, std::int64_t head, std::int64_t first) {
      const std::int64_t last = smaller(chunk.keys, first + kDecodeKeys);
      if (first < last) scores(chunk, head, first, last);
    });
    for_blocks(op_.v.size(3), kDecodeColumns,
               [&](const Chunk& chunk, std::int64_t head, std::int64_t column) {
                 values(chunk, head, column, smaller(kDecodeColumns, op_.v.size(3) - column));
               });
  }

 private:
  // f(chunk, head, begin of the block) for every head of every sequence.
  template <class F>
  void for_blocks(std::int64_t size, std::int64_t block, const F& f) const {
    const std::int64_t blocks = (size + block - 1) / block;
    parallel_for(sequences_.count * heads_ * blocks, threads_, [&](std::int64_t i) {
      const Chunk chunk = last_chunk(op_, sequences_, i / blocks / heads_);
      f(chunk, i / blocks % heads_, i % blocks * block);
    });
  }

  A* scores_of(const Chunk& chunk, std::int64_t head) const {
    return scores_.data() + (chunk.sequence * heads_ + head) * pitch_;
  }

  DecodeSpace<A> own_space() const { return spaces_.at(thread_index(), op_.k.size(3), pitch_); }

  // Whether the final state has the row still to come.
  bool is_copied(const Chunk& chunk, std::int64_t position) const {
    return chunk.unfinished && (!in_place_ || position >= chunk.first_query);
  }

  // Where such a row goes, from `column` on.
  static A* kept_row(const Tensor& state, const Chunk& chunk, std::int64_t position, std::int64_t head,
                     std::int64_t column) {
    return state.as<A>() + chunk.sequence * state.stride(0) + position * state.stride(1) +
           head * state.stride(2) + column;
  }

  void scores(const Chunk& chunk, std::int64_t head, std::int64_t first, std::int64_t last) const {
    const std::int64_t dim = op_.k.size(3), query = chunk.keys - 1;
    const bool has_token = chunk.tokens.length > 0;
    const DecodeSpace<A> own = own_space();
    A* scores = scores_of(chunk, head);
    if (has_token) load_tile(op_.q, chunk.tokens, 0, 1, head * op_.q.stride(2), dim, own.query, dim);
    const PositionRows<A> keys{op_.initial_k, op_.k, chunk, head};
    keys.visit(first, last - first, 0, dim, [&](auto* row, std::int64_t i) {
      if (is_copied(chunk, first + i))
        copy_row<A>(row, dim, kept_row(op_.final_k, chunk, first + i, head, 0));
      if (has_token) scores[first + i] = dot(own.query, row, dim) * static_cast<A>(op_.scale);
    });
    const Dropout dropout(op_, chunk, head);
    if (!has_token || !dropout.active()) return;
    for (std::int64_t key = first; key < last; ++key) dropout.drop(scores + key, key, query, 1);
  }

  template <class T>
  static A dot(const A* a, const T* b, std::int64_t count) {
    SlotSums<A> sum;
    for_vectors<A>(count, [&](auto lanes, std::int64_t c, int slot) {
      sum.slot[slot] += lanes.read(a + c) * lanes.read(b + c);
    });
    return sum.total();
  }

  void values(const Chunk& chunk, std::int64_t head, std::int64_t column, std::int64_t columns) const {
    const bool has_token = chunk.tokens.length > 0;
    const DecodeSpace<A> own = own_space();
    const A inverse =
        has_token ? softmax(scores_of(chunk, head), chunk.keys, Dropout(op_, chunk, head), own.weights) : 0;
    for (std::int64_t c = 0; c < kDecodeColumns; c += kLanes<A>) store(own.result + c, Vec<A>{});
    const PositionRows<A> values{op_.initial_v, op_.v, chunk, head};
    values.visit(0, chunk.keys, column, columns, [&](auto* row, std::int64_t i) {
      if (is_copied(chunk, i)) copy_row<A>(row, columns, kept_row(op_.final_v, chunk, i, head, column));
      if (!has_token) return;
      const Vec<A> weight = splat(own.weights[i]);
      for_vectors<A>(columns, [&](auto lanes, std::int64_t c, int) {
        store(own.result + c, load(own.result + c) + weight * lanes.read(row + c));
      });
    });
    if (!has_token) return;
    for (std::int64_t c = 0; c < columns; c += kLanes<A>) {
      store(own.result + c, load(own.result + c) * inverse);
    }
    store_tile(op_.y, chunk.tokens, 0, 1, head * op_.y.stride(2) + column, columns, own.result, columns);
  }

  // weights <- exp(scores - max), and returns the inverse of their sum.
  static A softmax(const A* scores, std::int64_t keys, const Dropout& dropout, A* weights) {
    const A lowest = -static_cast<A>(__builtin_inff());
    A highest = lowest;
    for (std::int64_t key = 0; key < keys; ++key) highest = scores[key] > highest ? scores[key] : highest;
    const Vec<A> shift = softmax_shift<A>(splat(highest), dropout);
    Vec<A> sum = {};
    for (std::int64_t key = 0; key < keys; key += kLanes<A>) {
      A lanes[kLanes<A>];
      for (int i = 0; i < kLanes<A>; ++i) lanes[i] = key + i < keys ? scores[key + i] : lowest;
      const Vec<A> weight = exp(load(lanes) - shift);
      sum += weight;
      store(weights + key, weight);
    }
    return softmax_inverse<A>(splat(reduce_sum(sum)))[0];
  }

  const ChunkAttentionForward& op_;
  const SequenceSpan& sequences_;
  int threads_;
  bool in_place_;
  std::int64_t heads_, pitch_;
  Scratch<A> scores_;
  Workspaces<DecodeSpace<A>, A> spaces_;
};

}  // namespace megalodon::cpu::MEGALODON_TARGET
