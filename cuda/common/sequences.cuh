// The independent sequences of a (B, L, ...) array, and their division into tiles of tokens. Offsets and
// masks lie in device memory and nobody waits for them: kernels resolve them, and a grid has the most tiles
// there can be.
#pragma once

#include "common/reduce.cuh"
#include "common/run.cuh"
#include "common/types.cuh"
#include "megalodon/ops/sequence.h"

namespace megalodon::cuda {

// One batch row or packed document without its padding.
struct Sequence {
  std::int64_t row, begin, length;
};

struct Sequences {
  std::int64_t length, count;           // L, and the rows of every state
  Global<const std::int64_t> offsets;   // packed: (count + 1,)
  Global<const std::int64_t> lengths;   // padded: (B,)
  Global<const std::int64_t> position;  // padded: (B, L), where token j of a row stands
};

MEGALODON_DEVICE Sequence sequence_at(const Sequences& all, std::int64_t s) {
  if (all.offsets) return {0, all.offsets[s], all.offsets[s + 1] - all.offsets[s]};
  return {s, 0, all.lengths ? all.lengths[s] : all.length};
}

// Where token j of the sequence stands in its row.
MEGALODON_DEVICE std::int64_t time_of(const Sequences& all, const Sequence& sequence, std::int64_t j) {
  return all.position ? all.position[sequence.row * all.length + j] : sequence.begin + j;
}

struct Tiles {
  Sequences sequences;
  std::int64_t size;                 // tokens of a tile, the last of a sequence may have fewer
  std::int64_t count;                // at most
  std::int64_t per_sequence;         // unless packed
  Global<const std::int64_t> first;  // packed: (sequences + 1,), the first tile of each
};

// Tokens [first, first + tokens) of a sequence. A tile that does not exist has none.
struct Tile {
  std::int64_t sequence, first, tokens;
};

MEGALODON_DEVICE std::int64_t first_tile(const Tiles& tiles, std::int64_t s) {
  return tiles.first ? tiles.first[s] : s * tiles.per_sequence;
}

MEGALODON_DEVICE Tile tile_at(const Tiles& tiles, std::int64_t i) {
  std::int64_t low = 0;
  if (tiles.first) {
    std::int64_t high = tiles.sequences.count;  // first[low] <= i < first[high]
    if (i >= tiles.first[high]) return {0, 0, 0};
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (tiles.first[middle] <= i ? low : high) = middle;
    }
  } else {
    low = i / tiles.per_sequence;
  }
  const std::int64_t first = (i - first_tile(tiles, low)) * tiles.size;
  const std::int64_t left = sequence_at(tiles.sequences, low).length - first;
  return {low, first, left < 0 ? 0 : left < tiles.size ? left : tiles.size};
}

// Queue what finds them; the kernels are in sequences.cu.
Sequences resolve(Run& run, const SequenceInputs& inputs, const SequenceShape& shape);
Tiles divide(Run& run, const Sequences& sequences, std::int64_t size);

// A (B, L, width) activation: any strides between tokens, dense within one.
template <class T>
struct Tokens {
  Global<T> data;
  std::int64_t row_stride, time_stride;
};

template <class T>
MEGALODON_DEVICE Global<T> token(const Tokens<T>& tokens, std::int64_t row, std::int64_t time) {
  return tokens.data + (row * tokens.row_stride + time * tokens.time_stride);
}

template <class T>
Tokens<T> tokens(const Tensor& tensor, const char* memory) {
  if (!tensor.defined()) return {};
  return {elements<T>(tensor, memory), tensor.stride(0), tensor.stride(1)};
}

inline constexpr int kClearThreads = 256;

template <class T>
struct ClearArgs {
  Global<const std::uint8_t> mask;  // (tokens,)
  Global<T> out;                    // (tokens, width)
  std::int64_t count, width;
};

// Padded positions of an output are 0. A warp clears a token.
template <class T>
MEGALODON_KERNEL void clear_padding_kernel(ClearArgs<T> op) {
  const std::int64_t i = block_x() * (kClearThreads / kWarp) + warp_index();
  if (i >= op.count || op.mask[i] == 0) return;
  for (std::int64_t c = lane_index(); c < op.width; c += kWarp) write(op.out[i * op.width + c], 0);
}

template <class T>
void clear_padding(Run& run, const SequenceInputs& inputs, Global<T> out, std::int64_t width) {
  if (!inputs.padding_mask.defined()) return;
  const std::int64_t count = inputs.padding_mask.numel();
  run.launch(
      clear_padding_kernel<T>, {divide_up(count, kClearThreads / kWarp)}, kClearThreads, 0,
      ClearArgs<T>{elements<const std::uint8_t>(inputs.padding_mask, "padding_mask"), out, count, width});
}

}  // namespace megalodon::cuda
