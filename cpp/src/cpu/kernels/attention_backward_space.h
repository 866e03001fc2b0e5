// What backward attention works in.
#pragma once

#include "cpu/kernels/attention_forward.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// Columns of the values multiplied at a time.
template <class P>
inline constexpr std::int64_t kValueDepth = 192 * kGroup<P>;

// What one thread packs for itself.
template <class P>
struct PackingSpace {
  using A = Acc<P>;
  A *keys, *panel, *result;
  P* values;

  PackingSpace(Arena<A>& arena, const AttentionSizes& sizes)
      : keys(arena.take(kKeyRows * round_up(sizes.key_dim, kPanel<A>))),
        panel(arena.take(larger(kKeyRows, sizes.tile_rows) * kPanel<A>)),
        result(arena.take(kPanel<A> * kPanel<A>)),
        values(arena.template take_as<P>(kKeyRows * kValueDepth<P>)) {}
};

// What all threads of a job share. Every block of keys leaves its share of a row's statistics in its own
// slot.
template <class P>
struct BackwardSpace {
  using A = Acc<P>;
  std::int64_t key_pitch, value_pitch;
  std::int64_t stride;     // of a panel of scores
  std::int64_t tile_rows;  // of a block's statistics
  A *queries, *queries_t;  // right operands: [panel of columns][row], [panel of rows][column]
  P *dy, *dy_t;
  A *scores, *dscores;           // [panel of rows][key][kPanel]
  A *shift, *inverse, *mean;     // per row: of the softmax, and rowsum(P dP)
  A *maxima, *sums, *mean_sums;  // per block and row
  A *dk, *dv;                    // [key][pitch]

  BackwardSpace(Arena<A>& arena, const AttentionSizes& sizes)
      : key_pitch(round_up(sizes.key_dim, kPanel<A>)),
        value_pitch(round_up(sizes.value_dim, kPanel<A>)),
        stride(round_up(sizes.keys, kBlockRows) * kPanel<A>),
        tile_rows(sizes.tile_rows),
        queries(arena.take(tile_rows * key_pitch)),
        queries_t(arena.take(tile_rows * key_pitch)),
        dy(arena.template take_as<P>(tile_rows * value_pitch)),
        dy_t(arena.template take_as<P>(tile_rows * value_pitch)),
        scores(arena.take(tile_rows / kPanel<A> * stride)),
        dscores(arena.take(tile_rows / kPanel<A> * stride)),
        shift(arena.take(tile_rows)),
        inverse(arena.take(tile_rows)),
        mean(arena.take(tile_rows)),
        maxima(arena.take(tile_rows * round_up(sizes.keys, kKeyRows) / kKeyRows)),
        sums(arena.take(tile_rows * round_up(sizes.keys, kKeyRows) / kKeyRows)),
        mean_sums(arena.take(tile_rows * round_up(sizes.keys, kKeyRows) / kKeyRows)),
        dk(arena.take(round_up(sizes.keys, kBlockRows) * key_pitch)),
        dv(arena.take(round_up(sizes.keys, kBlockRows) * value_pitch)) {}
};

// A head of a chunk, with its memory and the threads that share its work.
template <class P>
struct BackwardJob {
  const ChunkAttentionBackward& op;
  const Chunk& chunk;
  std::int64_t head;
  const BackwardSpace<P>& space;
  const AttentionSizes& sizes;
  const Workspaces<PackingSpace<P>, Acc<P>>& packing;
  int threads;

  PackingSpace<P> own_space() const { return packing.at(thread_index(), sizes); }
};

}  // namespace megalodon::cpu::MEGALODON_TARGET
