// How attention falls into chunks.
#pragma once

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/parallel.h"

namespace megalodon::cpu::MEGALODON_TARGET {

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
constexpr std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

inline std::int64_t initial_length(const Attention& op, std::int64_t sequence) {
  return op.initial_length.defined() ? op.initial_length.as<const std::int64_t>()[sequence] : 0;
}

// One chunk of one sequence, as far as it is known after this call. Its position p is position start + p of
// the sequence, where the initial state holds the first `prefix` positions and token j is position prefix +
// j.
struct Chunk {
  std::int64_t sequence = 0;
  Sequence tokens;
  std::int64_t prefix = 0;
  std::int64_t start = 0;
  std::int64_t first_query = 0;  // in the chunk: positions before it come from the initial state
  std::int64_t keys = 0;         // positions in the chunk
  bool unfinished = false;       // what it holds is the final state

  std::int64_t token(std::int64_t position) const { return start + position - prefix; }
};

// At least one, so that a sequence without tokens hands its state on.
inline std::int64_t chunk_count(const Attention& op, const SequenceSpan& sequences, std::int64_t sequence) {
  const std::int64_t positions = initial_length(op, sequence) + sequences.data[sequence].length;
  return larger(1, (positions - 1) / op.chunk_size + 1);
}

inline Chunk chunk_at(const Attention& op, const SequenceSpan& sequences, std::int64_t sequence,
                      std::int64_t index) {
  Chunk chunk;
  chunk.sequence = sequence;
  chunk.tokens = sequences.data[sequence];
  chunk.prefix = initial_length(op, sequence);
  chunk.start = index * op.chunk_size;
  chunk.first_query = index == 0 ? chunk.prefix : 0;
  chunk.keys = smaller(op.chunk_size, chunk.prefix + chunk.tokens.length - chunk.start);
  chunk.unfinished = chunk.keys < op.chunk_size;
  return chunk;
}

inline Chunk last_chunk(const Attention& op, const SequenceSpan& sequences, std::int64_t sequence) {
  return chunk_at(op, sequences, sequence, chunk_count(op, sequences, sequence) - 1);
}

// f(chunk, index in its sequence) for every chunk.
template <class F>
inline void for_chunks(const Attention& op, const SequenceSpan& sequences, const F& f) {
  for (std::int64_t i = 0; i < sequences.count; ++i) {
    const std::int64_t chunks = chunk_count(op, sequences, i);
    for (std::int64_t index = 0; index < chunks; ++index) f(chunk_at(op, sequences, i, index), index);
  }
}

// Of the longest chunk.
inline std::int64_t most_keys(const Attention& op, const SequenceSpan& sequences) {
  std::int64_t keys = 0;
  for (std::int64_t i = 0; i < sequences.count; ++i) {
    keys = larger(keys, initial_length(op, i) + sequences.data[i].length);
  }
  return smaller(keys, op.chunk_size);
}

// Threads worth waking. Eight multiplications of a matrix product count as one operation: they are that fast.
inline int useful_attention_threads(const ChunkAttention& op, const SequenceSpan& sequences, int threads) {
  std::int64_t scores = 0;
  for (std::int64_t i = 0; i < sequences.count; ++i) {
    const std::int64_t length = sequences.data[i].length;
    scores += length * smaller(op.chunk_size, initial_length(op, i) + length);
  }
  return useful_threads(threads, scores * op.v.size(2) / 8 * (op.k.size(3) + op.v.size(3)));
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
