// The keys and values of the unfinished chunk, which a later call goes on from.
#pragma once

#include "cpu/kernels/attention_chunks.h"
#include "cpu/kernels/rows.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// Converts a part of a row of one head.
template <class A, class T>
inline void copy_row(const T* from, std::int64_t count, A* to) {
  for_vectors<A>(count, [&](auto lanes, std::int64_t c, int) { lanes.write(to + c, lanes.read(from + c)); });
}

// Whether the final state is written into the memory of the initial one, so that old rows stay where they
// are.
inline bool in_place(const ChunkAttentionForward& op) {
  return op.initial_k.defined() && op.final_k.data == op.initial_k.data && op.final_k.numel() > 0;
}

// Row `position` of all heads of a final state.
template <class A>
inline void write_state_row(const Tensor& initial, const Tensor& tokens, const Tensor& state,
                            const Chunk& chunk, std::int64_t position) {
  const std::int64_t heads = state.size(2), width = state.size(3);
  A* to = state.as<A>() + chunk.sequence * state.stride(0) + position * state.stride(1);
  if (position < chunk.first_query) {
    std::memcpy(to, initial.as<const A>() + chunk.sequence * initial.stride(0) + position * initial.stride(1),
                static_cast<std::size_t>(heads * width) * sizeof(A));
    return;
  }
  with_storage(tokens.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    if constexpr (std::is_same_v<Acc<T>, A>) {
      const T* from = tokens.as<const T>() + chunk.tokens.row * tokens.stride(0) +
                      position_of(chunk.tokens, chunk.token(position)) * tokens.stride(1);
      for (std::int64_t head = 0; head < heads; ++head) {
        copy_row<A>(from + head * tokens.stride(2), width, to + head * width);
      }
    }
  });
}

template <class A>
inline void clear_state_row(const Tensor& state, std::int64_t sequence, std::int64_t position) {
  std::memset(state.as<A>() + sequence * state.stride(0) + position * state.stride(1), 0,
              static_cast<std::size_t>(state.stride(1)) * sizeof(A));
}

// Writes the final lengths, the rows below them unless `rows_written`, and 0 in the rows past them. In place,
// rows of an unchanged chunk are left alone, and only rows that held keys before are cleared.
template <class A>
inline void write_final_state(const ChunkAttentionForward& op, const SequenceSpan& sequences,
                              bool rows_written, int threads) {
  constexpr std::int64_t kRows = 64;  // handled by one thread at a time
  const std::int64_t capacity = op.final_k.size(1);
  const std::int64_t parts = (capacity + kRows - 1) / kRows;
  for (std::int64_t i = 0; i < sequences.count; ++i) {
    const Chunk chunk = last_chunk(op, sequences, i);
    op.final_length.as<std::int64_t>()[i] = chunk.unfinished ? chunk.keys : 0;
  }
  const bool kept = in_place(op);
  const std::int64_t elements = op.final_k.numel() + op.final_v.numel();
  parallel_for(sequences.count * parts, threads_for_elements(threads, elements), [&](std::int64_t part) {
    const Chunk chunk = last_chunk(op, sequences, part / parts);
    const std::int64_t length = op.final_length.as<const std::int64_t>()[chunk.sequence];
    const std::int64_t first = part % parts * kRows, last = smaller(capacity, first + kRows);
    if (!rows_written) {
      const std::int64_t unwritten = kept ? larger(first, chunk.first_query) : first;
      for (std::int64_t row = unwritten; row < smaller(length, last); ++row) {
        write_state_row<A>(op.initial_k, op.k, op.final_k, chunk, row);
        write_state_row<A>(op.initial_v, op.v, op.final_v, chunk, row);
      }
    }
    const std::int64_t used = kept ? smaller(last, chunk.prefix) : last;
    for (std::int64_t row = larger(length, first); row < used; ++row) {
      clear_state_row<A>(op.final_k, chunk.sequence, row);
      clear_state_row<A>(op.final_v, chunk.sequence, row);
    }
  });
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
