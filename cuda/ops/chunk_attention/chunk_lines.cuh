// What a call sees of one chunk of a sequence, for one head, and the rows of its arrays: line i belongs to
// the chunk's position i, whether the token stands in the call at any strides, or in the initial state.
#pragma once

#include "ops/chunk_attention/attention.cuh"
#include "ops/chunk_attention/tile_product.cuh"

namespace megalodon::cuda {

// Keys are lines [0, keys); those from `queries` on have a query too, those before stand in the initial
// state.
struct Chunk {
  Place at;
  std::int64_t start;  // position of line 0
  int keys, queries;
};

// Of all sequences: each has one chunk for `size` tokens, and one more where an initial state may shift them.
struct Chunks {
  std::int64_t size;
  Tiles tiles;  // of `size` tokens
  bool more;
};

inline std::int64_t chunk_count(const Chunks& chunks) {
  return chunks.tiles.count + (chunks.more ? chunks.tiles.sequences.count : 0);
}

MEGALODON_DEVICE std::int64_t first_chunk(const Chunks& chunks, std::int64_t s) {
  return first_tile(chunks.tiles, s) + (chunks.more ? s : 0);
}

// The sequence of chunk i, which may have fewer chunks than this; the last where there is none.
MEGALODON_DEVICE std::int64_t sequence_of(const Chunks& chunks, std::int64_t i) {
  std::int64_t low = 0, high = chunks.tiles.sequences.count;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (first_chunk(chunks, middle) <= i ? low : high) = middle;
  }
  return low;
}

// A chunk that does not exist has no keys.
template <class T>
MEGALODON_DEVICE Chunk chunk_at(const AttentionArgs<T>& op, const Chunks& chunks, std::int64_t i,
                                std::int64_t h) {
  Chunk chunk{};
  const std::int64_t s = sequence_of(chunks, i);
  chunk.at = place_of(op, s, h);
  chunk.start = (i - first_chunk(chunks, s)) * chunks.size;
  const std::int64_t left = chunk.at.total - chunk.start;
  chunk.keys = static_cast<int>(left < 0 ? 0 : left < chunks.size ? left : chunks.size);
  chunk.queries = chunk.start == 0 ? static_cast<int>(chunk.at.filled) : 0;
  return chunk;
}

// Rows of `width` elements.
template <class E>
struct Lines {
  Global<E> data;  // line i is at stride * (position ? position[i] : i)
  std::int64_t stride;
  Global<const std::int64_t> position;
  Global<const float> state;  // lines before `filled`
  std::int64_t state_stride;
  int filled;
  std::int64_t width;
  bool wide;
};

template <class E, class T>
MEGALODON_DEVICE Lines<E> lines_of(const AttentionArgs<T>& op, const Chunk& chunk, const Heads<E>& array,
                                   std::int64_t width, const Global<const float>& state = {}) {
  const Sequences& all = op.tiles.sequences;
  const Place& at = chunk.at;
  const std::int64_t first = chunk.start - at.filled;  // token of line 0, if it is one
  Lines<E> lines{};
  lines.data = array.data + (at.sequence.row * array.row_stride + at.h * array.head_stride);
  lines.stride = array.time_stride;
  if (all.position) {
    lines.position = all.position + (at.sequence.row * all.length + first);
  } else {
    lines.data = lines.data + (at.sequence.begin + first) * array.time_stride;
  }
  if (state) {
    lines.state_stride = op.head_count * width;
    lines.state = state + (at.s * op.capacity * lines.state_stride + at.h * width);
    lines.filled = chunk.queries;
  }
  lines.width = width;
  lines.wide = array.wide;
  return lines;
}

template <class E>
MEGALODON_DEVICE std::int64_t line_index(const Lines<E>& lines, std::int64_t line) {
  return lines.stride * (lines.position ? lines.position[line] : line);
}

// Whether lines from this one on are copied as they stand.
template <class E>
MEGALODON_DEVICE bool copied(const Lines<E>& lines, int line) {
  return lines.wide && line >= lines.filled;
}

inline constexpr std::int64_t kNowhere = INT64_MIN;

// Where a line's elements start, in `data` or in `state`, or kNowhere.
template <class E>
MEGALODON_DEVICE std::int64_t line_start(const Lines<E>& lines, int line, bool exists) {
  if (!exists) return kNowhere;
  return line < lines.filled ? line * lines.state_stride : line_index(lines, line);
}

// Brings elements [from, from + 8) of a line to shared memory, zeros where they do not exist.
template <class T>
MEGALODON_DEVICE void fetch_line(const Lines<const T>& lines, int line, std::int64_t start, std::int64_t from,
                                 const Shared<T>& to, int i) {
  const bool exists = start != kNowhere && from < lines.width, in_state = line < lines.filled;
  if (lines.wide && !in_state) {
    copy_async(to, i, lines.data, exists ? start + from : 0, exists);
    return;
  }
#pragma unroll 1
  for (int e = 0; e < kPiece; ++e) {
    T value{};
    if (exists && from + e < lines.width) {
      if (in_state) {
        write(value, lines.state[start + from + e]);
      } else {
        value = lines.data[start + from + e];
      }
    }
    to[i + e] = value;
  }
}

// Elements `column` and the next of a line; `column` is even.
template <class E>
MEGALODON_DEVICE void write_line(const Lines<E>& lines, std::int64_t line, std::int64_t column, float x,
                                 float y) {
  const float pair[2] = {x, y};
  const std::int64_t index = line_index(lines, line) + column;
  if (lines.wide && column < lines.width) {
    store(lines.data, index, pair);
  } else {
    for (int e = 0; e < 2; ++e) {
      if (column + e < lines.width) write(lines.data[index + e], pair[e]);
    }
  }
}

}  // namespace megalodon::cuda
