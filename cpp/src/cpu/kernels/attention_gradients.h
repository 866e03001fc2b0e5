// Gradients of whole chunks: the tiles of each, and where the gradients of its keys and values go.
#pragma once

#include "cpu/kernels/attention_backward.h"

namespace megalodon::cpu::MEGALODON_TARGET {

template <class P>
class BackwardChunk {
  using A = Acc<P>;

 public:
  explicit BackwardChunk(const BackwardJob<P>& job) : job_(job) {}

  void run() const {
    const BackwardSpace<P>& space = job_.space;
    const ChunkAttentionBackward& op = job_.op;
    start(op.dfinal_k, job_.sizes.key_dim, space.dk, space.key_pitch);
    start(op.dfinal_v, job_.sizes.value_dim, space.dv, space.value_pitch);
    for (std::int64_t i = 0; i < tile_count(job_.chunk, job_.sizes.tile_rows); ++i) {
      const QueryTile<A> tile = tile_at<A>(job_.chunk, i, job_.sizes.tile_rows);
      BackwardTile<P>(job_, tile).run();
    }
    finish(op.dinitial_k, op.dk, space.dk, space.key_pitch);
    finish(op.dinitial_v, op.dv, space.dv, space.value_pitch);
  }

 private:
  // f(first, last) for runs of positions of the chunk.
  template <class F>
  void for_positions(const F& f) const {
    constexpr std::int64_t run = 64;
    parallel_for((job_.chunk.keys + run - 1) / run, job_.threads,
                 [&](std::int64_t i) { f(i * run, smaller(job_.chunk.keys, (i + 1) * run)); });
  }

  // A gradient starts with what came through the final state.
  void start(const Tensor& dfinal, std::int64_t width, A* gradient, std::int64_t pitch) const {
    const bool kept = job_.chunk.unfinished && dfinal.defined();
    for_positions([&](std::int64_t first, std::int64_t last) {
      if (kept) {
        load_tile(dfinal, state_rows(job_.chunk.sequence, dfinal), first, last - first,
                  job_.head * dfinal.stride(2), width, gradient + first * pitch, pitch);
      } else {
        std::memset(gradient + first * pitch, 0,
                    static_cast<std::size_t>((last - first) * pitch) * sizeof(A));
      }
    });
  }

  // And ends with the token, or the row of the initial state, that the position came from.
  void finish(const Tensor& dinitial, const Tensor& dtokens, const A* gradient, std::int64_t pitch) const {
    const Chunk& chunk = job_.chunk;
    const std::int64_t width = dtokens.size(3);
    for_positions([&](std::int64_t first, std::int64_t last) {
      const std::int64_t token = smaller(last, larger(first, chunk.first_query));
      if (first < token) {
        store_tile(dinitial, state_rows(chunk.sequence, dinitial), first, token - first,
                   job_.head * dinitial.stride(2), width, gradient + first * pitch, pitch);
      }
      if (token < last) {
        store_tile(dtokens, chunk.tokens, chunk.token(token), last - token, job_.head * dtokens.stride(2),
                   width, gradient + token * pitch, pitch);
      }
    });
    if (chunk.start > 0 || !dinitial.defined()) return;
    for (std::int64_t row = chunk.prefix; row < dinitial.size(1); ++row) {
      std::memset(dinitial.as<A>() + chunk.sequence * dinitial.stride(0) + row * dinitial.stride(1) +
                      job_.head * dinitial.stride(2),
                  0, static_cast<std::size_t>(width) * sizeof(A));
    }
  }

  const BackwardJob<P>& job_;
};

// All heads of a chunk.
struct ChunkJob {
  std::int64_t sequence, index;
};

// Whether threads stay busy to the end when each takes whole jobs, of which the largest costs `most` of
// `total`.
inline bool jobs_fill_threads(std::int64_t jobs, double most, double total, int threads) {
  const auto rounds = static_cast<double>((jobs - 1) / threads + 1);
  return jobs >= 8 * threads || rounds * most * threads <= 1.1 * total;
}

template <class P>
inline void attend_backward(const ChunkAttentionBackward& op, const SequenceSpan& sequences, int threads) {
  const AttentionSizes sizes(op, sequences);
  std::int64_t chunks = 0;
  double most = 0, total = 0;
  for_chunks(op, sequences, [&](const Chunk& chunk, std::int64_t) {
    const double scores =
        static_cast<double>(chunk.keys) * static_cast<double>(chunk.keys - chunk.first_query);
    most = scores > most ? scores : most;
    total += scores * static_cast<double>(sizes.heads);
    ++chunks;
  });
  Scratch<ChunkJob> jobs(chunks);
  std::int64_t next = 0;
  for_chunks(op, sequences,
             [&](const Chunk& chunk, std::int64_t index) { jobs.data()[next++] = {chunk.sequence, index}; });
  const std::int64_t count = chunks * sizes.heads;
  const bool whole = jobs_fill_threads(count, most, total, threads);
  const Workspaces<BackwardSpace<P>, Acc<P>> spaces(whole ? threads : 1, sizes);
  const Workspaces<PackingSpace<P>, Acc<P>> packing(threads, sizes);
  parallel_for(count, whole ? threads : 1, [&](std::int64_t i) {
    const ChunkJob& at = jobs.data()[i / sizes.heads];
    const Chunk chunk = chunk_at(op, sequences, at.sequence, at.index);
    const BackwardSpace<P> space = spaces.at(whole ? thread_index() : 0, sizes);
    BackwardChunk<P>({op, chunk, i % sizes.heads, space, sizes, packing, whole ? 1 : threads}).run();
  });
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
