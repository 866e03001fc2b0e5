// What the probabilities, or the gradients of the scores, are multiplied with: y and dq for tiles of queries,
// dk and dv for tiles of keys.
#pragma once

#include "ops/chunk_attention/probabilities.cuh"
#include "ops/chunk_attention/state.cuh"

namespace megalodon::cuda {

// The weights of a band: rows are its queries, depths are keys.
template <class T, bool kFactors>
struct QueryWeights {
  static constexpr bool kDeep = false, kScaled = kFactors;
  Global<const T> weights, factors;  // of the band's first tile
};

template <class T, bool kFactors>
MEGALODON_DEVICE void fetch(const QueryWeights<T, kFactors>& band, int step, const Shared<T>& to) {
  const std::int64_t key = std::int64_t{step} * kStep;
  const std::int64_t first = key / kTile * kTileSize + key % kTile;
  each_piece<false>(step % kStages, [&](int line, int from, int i) {
    copy_async(to, i, band.weights, first + line * kTile + from, true);
  });
}

template <class T>
MEGALODON_DEVICE void fetch_factors(const QueryWeights<T, true>& band, int step, int from,
                                    const Shared<T>& to, int i) {
  copy_async(to, i, band.factors, step * kStep / kTile * kTile + from, true);
}

// The weights of a tile of keys: rows are these, depths are queries from tile `band` on.
template <class T>
struct KeyWeights {
  static constexpr bool kDeep = true, kScaled = false;
  Group<T> group;
  Chunk chunk;
  int band, j;
};

template <class T>
MEGALODON_DEVICE void fetch(const KeyWeights<T>& keys, int step, const Shared<T>& to) {
  const int query = step * kStep;
  const std::int64_t tile = tile_index(keys.group, keys.chunk, keys.band + query / kTile, keys.j);
  const Global<const T> first = keys.group.p + (tile * kTileSize + query % kTile * kTile);
  each_piece<true>(step % kStages,
                   [&](int line, int from, int i) { copy_async(to, i, first, line * kTile + from, true); });
}

// Lines of a chunk by depth, from `first` on: columns from `column`.
//
// Not every row of the block sees every line, and a weight of 0 does not hide what is not finite: 0 NaN is
// NaN. So such elements become 0 in the stages that have a line which some row does not see, and `reach`
// keeps for each column how far they reach: rows they reach become NaN at the end. Rows are queries from line
// `row` on, which see what is before them, or keys (kKeys), seen by what is after them.
template <class T, bool kKeys>
struct ChunkDepth {
  static constexpr bool kDeep = true;
  Lines<const T> lines;
  int first, end;
  std::int64_t column;
  int row;
  Shared<int> reach;  // (kReachRows, kTile): each element belongs to one thread
};

// What is not finite at a line reaches the rows whose rank is not below the line's.
template <bool kKeys>
MEGALODON_DEVICE int rank_of(int line) {
  return kKeys ? -line : line;
}

template <class T, bool kKeys>
MEGALODON_DEVICE void fetch(const ChunkDepth<T, kKeys>& b, int step, const Shared<T>& to) {
  const int at = b.first + step * kStep;
  if (copied(b.lines, at) && !b.lines.position) {
    const std::int64_t first = at * b.lines.stride + b.column;
    each_piece<true>(step % kStages, [&](int line, int from, int i) {
      copy_async(to, i, b.lines.data, first + line * b.lines.stride + from,
                 at + line < b.end && b.column + from < b.lines.width);
    });
  } else {
    each_piece<true>(step % kStages, [&](int line, int from, int i) {
      const std::int64_t start = line_start(b.lines, at + line, at + line < b.end);
      fetch_line(b.lines, at + line, start, b.column + from, to, i);
    });
  }
}

template <class T, bool kKeys>
MEGALODON_DEVICE void inspect(const ChunkDepth<T, kKeys>& b, int step, const Shared<T>& stages) {
  const int at = b.first + step * kStep;
  if (kKeys ? at >= b.row + kTile - 1 : at + kStep - 1 <= b.row) return;
  each_piece<true>(step % kStages, [&](int line, int from, int i) {
#pragma unroll 1
    for (int e = 0; e < kPiece; ++e) {
      T& element = stages[i + e];
      const float value = read(element);
      if (value - value == 0) continue;
      element = T{};
      int& farthest = b.reach[thread_index() / (kTile / kPiece) * kTile + from + e];
      const int rank = rank_of<kKeys>(at + line);
      if (rank < farthest) farthest = rank;
    }
  });
}

inline constexpr int kReachRows = kProductThreads * kPiece / kTile;
inline constexpr std::int64_t kReachBytes = shared_size<int>(kReachRows * kTile);

// Before the product.
MEGALODON_DEVICE void clear_reach(const Shared<int>& reach) {
  for (int i = thread_index(); i < kReachRows * kTile; i += kProductThreads) reach[i] = INT32_MAX;
  block_barrier();
}

// After the product: the first row of `reach` becomes that of all lines.
MEGALODON_DEVICE void finish_reach(const Shared<int>& reach) {
  for (int i = 1; i < kReachRows; ++i) {
    const int other = reach[i * kTile + thread_index()];
    if (other < reach[thread_index()]) reach[thread_index()] = other;
  }
  block_barrier();
}

// y (kFactors) or dq, of a tile of queries and 128 columns.
template <class T, class Out>
struct QueryProduct {
  Group<T> group;
  Heads<const T> from;          // v or k
  Global<const float> initial;  // the same of the initial state
  std::int64_t width;
  Heads<Out> out;
};

template <bool kFactors, class T, class Out>
MEGALODON_KERNEL void query_products(QueryProduct<T, Out> op) {
  using A = QueryWeights<T, kFactors>;
  using B = ChunkDepth<T, false>;
  SharedMemory memory;
  const Stages<T> stages = take_stages<A, B, T>(memory);
  const Shared<int> reach = memory.take<int>(kReachRows * kTile);
  const Group<T>& group = op.group;
  const std::int64_t columns = (op.width + kTile - 1) / kTile, column = block_x() % columns * kTile;
  // The longest come first.
  const Band band = band_at(group, group.row_tiles - 1 - static_cast<int>(block_x() / columns));
  if (!band.exists) return;
  clear_reach(reach);
  Sums sums;
  tile_product(
      stages, (band.end + kStep - 1) / kStep,
      A{Global<const T>(group.p) + band.tile * kTileSize, Global<const T>(group.factor) + band.tile * kTile},
      B{lines_of(group.attention, band.chunk, op.from, op.width, op.initial), 0, band.end, column, band.first,
        reach},
      band.end - band.first, op.width - column, sums);
  finish_reach(reach);

  const Lines<Out> out = lines_of(group.attention, band.chunk, op.out, op.width);
  float inverse[kPart / 8];
  each_row([&](int m, int row) {
    const float total = kFactors ? group.total[band.row + row] : 1.0f;
    inverse[m] = total == 0 ? 0.0f : 1 / total;
  });
  each_pair(sums, [&](int m, int row, int at, float x, float y) {
    const int line = band.first + row;
    if (line >= band.end) return;
    write_line(out, line, column + at, reach[at] <= rank_of<false>(line) ? NAN : x * inverse[m],
               reach[at + 1] <= rank_of<false>(line) ? NAN : y * inverse[m]);
  });
}

// dk or dv, of a tile of keys and 128 columns.
template <class T, class Out>
struct KeyProduct {
  Group<T> group;
  Heads<const T> from;  // q or dy
  std::int64_t width;
  Heads<Out> out;              // the tokens' gradients
  Global<float> initial;       // (sequences, P, H, width): the initial state's
  Global<const float> dfinal;  // (sequences, capacity, H, width): what came back through the final state
};

template <class T, class Out>
MEGALODON_KERNEL void key_products(KeyProduct<T, Out> op) {
  using A = KeyWeights<T>;
  using B = ChunkDepth<T, true>;
  SharedMemory memory;
  const Stages<T> stages = take_stages<A, B, T>(memory);
  const Shared<int> reach = memory.take<int>(kReachRows * kTile);
  const Group<T>& group = op.group;
  const AttentionArgs<T>& from = group.attention;
  const std::int64_t columns = (op.width + kTile - 1) / kTile, column = block_x() % columns * kTile;
  const Chunk chunk = chunk_of_block(group);
  const int j = static_cast<int>(block_x() / columns), key = j * kTile;
  if (key >= chunk.keys) return;
  clear_reach(reach);
  // The first tile of queries that sees a key of these.
  const int before = (chunk.queries + kTile - 1) / kTile, band = j > before ? j - before : 0;
  const int first = chunk.queries + band * kTile;
  Sums sums;
  tile_product(stages, first < chunk.keys ? (chunk.keys - first + kStep - 1) / kStep : 0,
               A{group, chunk, band, j},
               B{lines_of(from, chunk, op.from, op.width), first, chunk.keys, column, key, reach},
               chunk.keys - key, op.width - column, sums);
  finish_reach(reach);

  const Lines<Out> out = lines_of(from, chunk, op.out, op.width);
  each_pair(sums, [&](int, int row, int at, float x, float y) {
    const int line = key + row;
    if (line >= chunk.keys) return;
    float pair[2] = {x, y};
    for (int e = 0; e < 2; ++e) {
      const std::int64_t c = column + at + e;
      if (c >= op.width) continue;
      if (reach[at + e] <= rank_of<true>(line)) pair[e] = NAN;
      pair[e] += through_state(from, op.dfinal, op.width, chunk.at, chunk.start + line, c);
      if (line < chunk.queries) {
        op.initial[((chunk.at.s * from.capacity + line) * from.head_count + chunk.at.h) * op.width + c] =
            pair[e];
      }
    }
    if (line >= chunk.queries) write_line(out, line, column + at, pair[0], pair[1]);
  });
}

}  // namespace megalodon::cuda
