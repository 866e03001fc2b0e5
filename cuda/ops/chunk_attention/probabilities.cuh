// The probabilities of a group of chunks on tensor cores, in 16 bit, as tiles of 128 queries and 128 keys of
// which the causal ones are kept. With the scores x in powers of two (scale log2(e) q . k):
//
//   score_tiles   p^ = 2^(x - e), e = ceil(max x) of the query in this tile, and the sum of p^
//   finish_rows   E = max e;   factor = 2^(e - E);   total = sum of factor p^ over the tiles
//
// so p = factor p^ / total, and every score is computed once: y takes p^ in 16 bit and multiplies it by
// factors, which lose nothing as powers of two.
#pragma once

#include "ops/chunk_attention/chunk_lines.cuh"
#include "ops/chunk_attention/tile_product.cuh"

namespace megalodon::cuda {

inline constexpr int kTileSize = kTile * kTile;

// Pairs of a chunk and a head; block_y() of a grid counts those of the group.
template <class T>
struct Group {
  AttentionArgs<T> attention;
  Chunks chunks;
  std::int64_t first, pairs;             // of the group, and of all groups
  int row_tiles, key_tiles;              // of a pair, at most
  std::int64_t tiles;                    // of a pair that are kept, at most
  Global<T> p;                           // (pairs, tiles, kTile, kTile)
  Global<float> dp;                      // the same; p^ before
  Global<float> exponent, sum, product;  // (pairs, tiles, kTile), one per query
  Global<T> factor;                      // the same
  Global<float> total, mean;             // (pairs, row_tiles, kTile); the mean of dp is D
};

// Tile i of a chunk's queries: lines [first, end). It sees keys [0, end).
struct Band {
  Chunk chunk;
  int i, first, end;
  std::int64_t tile, row;  // of its keys 0 and query 0
  bool exists;
};

// Where the tile of queries i and of keys j is kept; it has to have a key that some of the queries see.
// `before` tiles of keys stand in front of the first query, so row i of tiles has i + before + 1.
template <class T>
MEGALODON_DEVICE std::int64_t tile_index(const Group<T>& op, const Chunk& chunk, int i, int j) {
  const std::int64_t n = i, before = (chunk.queries + kTile - 1) / kTile;
  return block_y() * op.tiles + n * (n + 1) / 2 + n * before + j;
}

template <class T>
MEGALODON_DEVICE Chunk chunk_of_block(const Group<T>& op) {
  const std::int64_t pair = op.first + block_y(), heads = op.attention.head_count;
  if (pair >= op.pairs) return {};
  return chunk_at(op.attention, op.chunks, pair / heads, pair % heads);
}

template <class T>
MEGALODON_DEVICE Band band_at(const Group<T>& op, int i) {
  Band band{};
  band.chunk = chunk_of_block(op);
  band.i = i;
  band.first = band.chunk.queries + i * kTile;
  band.end = band.first + kTile < band.chunk.keys ? band.first + kTile : band.chunk.keys;
  band.exists = band.first < band.end;
  band.tile = tile_index(op, band.chunk, i, 0);
  band.row = (block_y() * op.row_tiles + i) * kTile;
  return band;
}

// The tile of a band that a block works on, of a grid with one for every pair of them: its keys are [key, key
// + kTile), and what is kept of it is tile `kept`.
struct BandTile {
  Band band;
  int key;
  std::int64_t kept;
  bool exists;
};

template <class T>
MEGALODON_DEVICE BandTile tile_of_block(const Group<T>& op) {
  const int block = static_cast<int>(block_x()), j = block % op.key_tiles, key = j * kTile;
  const Band band = band_at(op, block / op.key_tiles);
  return {band, key, band.tile + j, band.exists && key < band.end};
}

// 128 lines of a chunk, from `first` on, as rows of a or as columns of b.
template <class T>
struct ChunkRows {
  static constexpr bool kDeep = false, kScaled = false;
  Lines<const T> lines;
  int first;
  Shared<std::int64_t> starts;  // of each
};

template <class T>
MEGALODON_DEVICE void fetch(const ChunkRows<T>& rows, int step, const Shared<T>& to) {
  const int first = step * kStep;
  if (copied(rows.lines, rows.first)) {
    each_piece<false>(step % kStages, [&](int line, int from, int i) {
      const std::int64_t start = rows.starts[line];
      copy_async(to, i, rows.lines.data, start + first + from,
                 start != kNowhere && first + from < rows.lines.width);
    });
  } else {
    each_piece<false>(step % kStages, [&](int line, int from, int i) {
      fetch_line(rows.lines, rows.first + line, rows.starts[line], first + from, to, i);
    });
  }
}

template <class T>
struct BandMemory {
  Stages<T> stages;
  Shared<std::int64_t> starts;
  Shared<float> scratch;
};

template <class T>
MEGALODON_DEVICE BandMemory<T> take_band(SharedMemory& memory) {
  BandMemory<T> band;
  band.stages = take_stages<ChunkRows<T>, ChunkRows<T>, T>(memory);
  band.starts = memory.take<std::int64_t>(2 * kTile);
  band.scratch = memory.take<float>(2 * kTile);
  return band;
}

template <class T>
inline constexpr std::int64_t kBandBytes =
    stages_bytes<ChunkRows<T>, ChunkRows<T>, T>() + shared_size<std::int64_t>(2 * kTile) +
    shared_size<float>(2 * kTile);

// A band of queries and the keys from `key` on: their products over `width` elements.
template <class T>
MEGALODON_DEVICE void band_product(const BandMemory<T>& memory, const Band& band, int key, std::int64_t width,
                                   const Lines<const T>& queries, const Lines<const T>& keys, Sums& sums) {
  const ChunkRows<T> a{queries, band.first, memory.starts}, b{keys, key, memory.starts + kTile};
  const int row = thread_index();
  a.starts[row] = line_start(queries, a.first + row, a.first + row < band.end);
  b.starts[row] = line_start(keys, b.first + row, b.first + row < band.end);
  block_barrier();
  tile_product(memory.stages, static_cast<int>((width + kStep - 1) / kStep), a, b, band.end - band.first,
               band.end - key, sums);
}

MEGALODON_DEVICE float sum_of_two(float a, float b) { return a + b; }
// NaN loses, and comes back with the exponentials.
MEGALODON_DEVICE float larger_of_two(float a, float b) { return b > a ? b : a; }

// Scores become x where the query sees the key, else -inf; `largest` of each row of the thread.
template <class T>
MEGALODON_DEVICE void mask_scores(const Group<T>& op, const Band& band, int key, Sums& sums,
                                  float (&largest)[kPart / 8]) {
  constexpr float log2e = 1.44269504088896340736f, nothing = -INFINITY;
  const Chunk& chunk = band.chunk;
  const float scale = op.attention.scale * log2e;
#pragma unroll
  for (int m = 0; m < kPart / 8; ++m) largest[m] = nothing;
  each_pair(sums, [&](int m, int row, int column, float& x, float& y) {
    const int query = band.first + row, at = key + column;
    const auto seen = [&](int s) {
      return s <= query && query < band.end &&
             !dropped(op.attention, chunk.at, chunk.start + query, chunk.start + s);
    };
    x = seen(at) ? x * scale : nothing;
    y = seen(at + 1) ? y * scale : nothing;
    largest[m] = larger_of_two(largest[m], larger_of_two(x, y));
  });
}

// Where p^ is kept: in p for y, in the place of dp where it stays in float.
template <class W, class T>
MEGALODON_DEVICE Global<W> weights_of(const Group<T>& op) {
  if constexpr (std::is_same_v<W, float>) {
    return op.dp;
  } else {
    return op.p;
  }
}

// p^ is rounded to W, and its sum is of what that leaves: y is a mean of values with exact weights.
template <class W, class T>
MEGALODON_KERNEL void score_tiles(Group<T> op) {
  SharedMemory memory;
  const BandMemory<T> shared = take_band<T>(memory);
  const AttentionArgs<T>& from = op.attention;
  const BandTile at = tile_of_block(op);
  const Band& band = at.band;
  if (!at.exists) return;
  Sums sums;
  band_product(shared, band, at.key, from.key_dim, lines_of(from, band.chunk, from.q, from.key_dim),
               lines_of(from, band.chunk, from.k, from.key_dim, from.initial_k), sums);

  float exponent[kPart / 8], sum[kPart / 8] = {};
  mask_scores(op, band, at.key, sums, exponent);
  combine_rows(shared.scratch, exponent, larger_of_two);
#pragma unroll
  for (int m = 0; m < kPart / 8; ++m) exponent[m] = exponent[m] == -INFINITY ? 0.0f : std::ceil(exponent[m]);
  const Global<W> tile = weights_of<W>(op) + at.kept * kTileSize;
  each_pair(sums, [&](int m, int row, int column, float& x, float& y) {
    const float weights[2] = {std::exp2(x - exponent[m]), std::exp2(y - exponent[m])};
    W rounded[2];
    write(rounded[0], weights[0]);
    write(rounded[1], weights[1]);
    store(tile, row * kTile + column, weights);
    sum[m] += read(rounded[0]) + read(rounded[1]);
  });
  combine_rows(shared.scratch, sum, sum_of_two);
  const std::int64_t rows = at.kept * kTile;
  each_row([&](int m, int row) {
    op.exponent[rows + row] = exponent[m];
    op.sum[rows + row] = sum[m];
  });
}

// A thread has one query of a band.
template <class T>
MEGALODON_KERNEL void finish_rows(Group<T> op) {
  const Band band = band_at(op, static_cast<int>(block_x()));
  if (!band.exists) return;
  float largest = -INFINITY, total = 0;
  const auto each_tile = [&](const auto& use) {
    for (int j = 0; j * kTile < band.end; ++j) use((band.tile + j) * kTile + thread_index());
  };
  each_tile([&](std::int64_t i) {
    if (op.sum[i] != 0) largest = larger_of_two(largest, op.exponent[i]);
  });
  each_tile([&](std::int64_t i) {
    const float factor = op.sum[i] == 0 ? 0.0f : std::exp2(op.exponent[i] - largest);
    total += factor * op.sum[i];
    write(op.factor[i], factor);
  });
  op.total[band.row + thread_index()] = total;
}

}  // namespace megalodon::cuda
