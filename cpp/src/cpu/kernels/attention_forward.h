// Forward attention: every tile of queries of every head is a job of its own.
//
// A job computes the scores of its tile against all keys, one softmax per query over the whole row, and then
// the product with the values, whose panels it packs as it goes. Its workspace is tile x chunk.
//
// Products with the values, which are most of the work where Dv = 8 Dz, are of operands of type P; scores are
// computed in the accumulation type A, and so is all that is added up.
#pragma once

#include "cpu/kernels/arena.h"
#include "cpu/kernels/attention_products.h"
#include "cpu/kernels/softmax.h"

namespace megalodon::cpu::MEGALODON_TARGET {

inline constexpr std::int64_t kTileRows = 192;      // queries of a tile, at most
inline constexpr std::int64_t kTileStep = 48;       // a multiple of every kPanel
inline constexpr std::int64_t kKeyRows = 128;       // keys packed at a time
inline constexpr std::int64_t kValueColumns = 192;  // columns of the result that stay in cache over all keys

struct AttentionSizes {
  std::int64_t heads, key_dim, value_dim;
  std::int64_t keys;       // of the longest chunk
  std::int64_t tile_rows;  // a multiple of kTileStep

  AttentionSizes(const ChunkAttention& op, const SequenceSpan& sequences)
      : heads(op.v.size(2)),
        key_dim(op.k.size(3)),
        value_dim(op.v.size(3)),
        keys(most_keys(op, sequences)),
        tile_rows(smaller(kTileRows, round_up(smaller(keys, sequences.longest + kBlockRows), kTileStep))) {}
};

// What one thread works in.
template <class P>
struct ForwardSpace {
  using A = Acc<P>;
  std::int64_t key_pitch, value_pitch;
  std::int64_t stride;  // of a panel of scores
  A *packed, *queries;  // [row][kPanel], and [panel][Dz][kPanel]
  A* keys;
  P* values;
  A *scores, *shift, *inverse;  // weights take the place of scores
  A* result;                    // [row][value_pitch]

  ForwardSpace(Arena<A>& arena, const AttentionSizes& sizes)
      : key_pitch(round_up(sizes.key_dim, kPanel<A>)),
        value_pitch(smaller(kValueColumns, round_up(sizes.value_dim, kPanel<A>))),
        stride(round_up(sizes.keys, kBlockRows) * kPanel<A>),
        packed(arena.take(sizes.tile_rows * kPanel<A>)),
        queries(arena.take(sizes.tile_rows * key_pitch)),
        keys(arena.take(kKeyRows * key_pitch)),
        values(arena.template take_as<P>(kKeyRows * value_pitch)),
        scores(arena.take(sizes.tile_rows / kPanel<A> * stride)),
        shift(arena.take(sizes.tile_rows)),
        inverse(arena.take(sizes.tile_rows)),
        result(arena.take(sizes.tile_rows * value_pitch)) {}
};

template <class P>
class ForwardTile {
  using A = Acc<P>;

 public:
  ForwardTile(const ChunkAttentionForward& op, const Chunk& chunk, std::int64_t head,
              const QueryTile<A>& tile, const ForwardSpace<P>& space)
      : op_(op), chunk_(chunk), head_(head), tile_(tile), space_(space) {}

  void run() const {
    pack();
    scores();
    softmax();
    for (std::int64_t column = 0; column < op_.v.size(3); column += kValueColumns) values(column);
  }

 private:
  void pack() const {
    const std::int64_t dim = op_.q.size(3);
    for (std::int64_t column = 0; column < dim; column += kPanel<A>) {
      pack_queries(op_.q, chunk_, head_, tile_, column, static_cast<A>(op_.scale), space_.packed);
      transpose_queries(space_.packed, tile_, column, dim, space_.queries);
    }
  }

  void scores() const {
    const PositionRows<A> keys{op_.initial_k, op_.k, chunk_, head_};
    const std::int64_t dim = op_.k.size(3);
    for (std::int64_t first = 0; first < tile_.keys(); first += kKeyRows) {
      const std::int64_t count = smaller(kKeyRows, tile_.keys() - first);
      keys.load_rows(first, count, 0, dim, space_.keys, space_.key_pitch);
      score_product(space_.keys, space_.key_pitch, first, count, space_.queries, dim, dim, tile_,
                    space_.scores, space_.stride, false);
    }
  }

  P* weights(std::int64_t panel) const { return reinterpret_cast<P*>(space_.scores + panel * space_.stride); }

  // Leaves exponentials in place of the scores; what they are to be divided by waits for the result.
  void softmax() const {
    const Dropout dropout(op_, chunk_, head_);
    for (std::int64_t panel = 0; panel < tile_.panels(); ++panel) {
      const ScorePanel<A> scores{space_.scores + panel * space_.stride, tile_.panel_first(panel),
                                 tile_.panel_rows(panel)};
      A* shift = space_.shift + panel * kPanel<A>;
      A* inverse = space_.inverse + panel * kPanel<A>;
      scores.mask(0, tile_.panel_keys(panel), dropout);
      scores.maxima(0, tile_.panel_keys(panel), shift);
      for (std::int64_t i = 0; i < scores.rows; i += kLanes<A>) {
        store(shift + i, softmax_shift<A>(load(shift + i), dropout));
      }
      scores.exponentiate(0, tile_.panel_keys(panel), shift, inverse, weights(panel));
      for (std::int64_t i = 0; i < scores.rows; i += kLanes<A>) {
        store(inverse + i, softmax_inverse<A>(load(inverse + i)));
      }
    }
  }

  // Columns [column, column + kValueColumns) of y.
  void values(std::int64_t column) const {
    const PositionRows<A> rows{op_.initial_v, op_.v, chunk_, head_};
    const std::int64_t columns = smaller(kValueColumns, op_.v.size(3) - column);
    for (std::int64_t first = 0; first < tile_.keys(); first += kKeyRows) {
      const std::int64_t last = smaller(tile_.keys(), first + kKeyRows);
      rows.template pack<kKeyRows>(first, last - first, column, columns, space_.values);
      for (std::int64_t c = 0; c < columns; c += kPanel<A>) {
        for (std::int64_t panel = 0; panel < tile_.panels(); ++panel) {
          weighted_product(weights(panel), tile_, panel, first, last, space_.values + c * kKeyRows,
                           columns - c, space_.result + panel * kPanel<A> * space_.value_pitch + c,
                           space_.value_pitch, first > 0);
        }
      }
    }
    for (std::int64_t row = tile_.idle; row < tile_.rows; ++row) {
      A* result = space_.result + row * space_.value_pitch;
      for (std::int64_t c = 0; c < columns; c += kLanes<A>)
        store(result + c, load(result + c) * space_.inverse[row]);
    }
    store_tile(op_.y, chunk_.tokens, chunk_.token(tile_.first + tile_.idle), tile_.rows - tile_.idle,
               head_ * op_.y.stride(2) + column, columns, space_.result + tile_.idle * space_.value_pitch,
               space_.value_pitch);
  }

  const ChunkAttentionForward& op_;
  const Chunk& chunk_;
  std::int64_t head_;
  const QueryTile<A>& tile_;
  const ForwardSpace<P>& space_;
};

// All heads of a tile.
struct TileJob {
  std::int64_t sequence, chunk, tile;
};

inline std::int64_t count_tiles(const Attention& op, const SequenceSpan& sequences, std::int64_t tile_rows) {
  std::int64_t tiles = 0;
  for_chunks(op, sequences, [&](const Chunk& chunk, std::int64_t) { tiles += tile_count(chunk, tile_rows); });
  return tiles;
}

template <class P>
inline void attend_forward(const ChunkAttentionForward& op, const SequenceSpan& sequences, int threads) {
  AttentionSizes sizes(op, sequences);
  // Smaller tiles where there are too few to keep all threads busy. What a row receives does not depend on
  // it.
  while (threads > 1 && sizes.tile_rows > kTileStep &&
         count_tiles(op, sequences, sizes.tile_rows) * sizes.heads < 4 * threads) {
    sizes.tile_rows -= kTileStep;
  }
  Scratch<TileJob> jobs(count_tiles(op, sequences, sizes.tile_rows));
  std::int64_t job = 0;
  for_chunks(op, sequences, [&](const Chunk& chunk, std::int64_t index) {
    // The last tile of a chunk has the most keys: the longest job comes first.
    for (std::int64_t tile = tile_count(chunk, sizes.tile_rows); tile-- > 0;) {
      jobs.data()[job++] = {chunk.sequence, index, tile};
    }
  });
  using A = Acc<P>;
  const Workspaces<ForwardSpace<P>, A> workspaces(threads, sizes);
  parallel_for(jobs.size() * sizes.heads, threads, [&](std::int64_t i) {
    const TileJob& at = jobs.data()[i / sizes.heads];
    const Chunk chunk = chunk_at(op, sequences, at.sequence, at.chunk);
    const QueryTile<A> tile = tile_at<A>(chunk, at.tile, sizes.tile_rows);
    const ForwardSpace<P> space = workspaces.at(thread_index(), sizes);
    ForwardTile<P>(op, chunk, i % sizes.heads, tile, space).run();
  });
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
