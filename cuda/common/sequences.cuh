// The independent sequences of a (B, L, ...) array, and their division into tiles of tokens. Offsets and
// masks lie in device memory and nobody waits for them: kernels resolve them, and a grid has the most tiles
// there can be.
#pragma once

#include "common/run.cuh"
#include "common/scan.cuh"
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

inline constexpr int kScanThreads = 256;

struct OffsetArgs {
  Global<const std::int32_t> narrow;  // the caller's offsets, of one type or the other
  Global<const std::int64_t> wide;
  Global<std::int64_t> offsets;
  std::int64_t count, length;
};

// Offsets that are out of order or of range are wrong, but must not lead out of memory: each becomes the
// largest so far inside [0, L].
MEGALODON_KERNEL void read_offsets(OffsetArgs op) {
  SharedMemory memory;
  const auto warps = memory.take<std::int64_t>(kScanThreads / kWarp);
  std::int64_t largest = 0;
  for (std::int64_t first = 0; first <= op.count; first += kScanThreads) {
    const std::int64_t i = first + thread_index();
    std::int64_t offset = 0;
    if (i <= op.count) offset = op.narrow ? op.narrow[i] : op.wide[i];
    offset = offset > op.length ? op.length : offset > largest ? offset : largest;
    const Prefix prefix =
        block_scan(offset, warps, [](std::int64_t a, std::int64_t b) { return a > b ? a : b; });
    if (i <= op.count) op.offsets[i] = prefix.inclusive;
    largest = prefix.total;
  }
}

struct TileArgs {
  Global<const std::int64_t> offsets;
  Global<std::int64_t> first;
  std::int64_t count, size;
};

MEGALODON_KERNEL void count_tiles(TileArgs op) {
  SharedMemory memory;
  const auto warps = memory.take<std::int64_t>(kScanThreads / kWarp);
  std::int64_t before = 0;
  if (thread_index() == 0) op.first[0] = 0;
  for (std::int64_t base = 0; base < op.count; base += kScanThreads) {
    const std::int64_t s = base + thread_index();
    std::int64_t tiles = 0;
    if (s < op.count) tiles = (op.offsets[s + 1] - op.offsets[s] + op.size - 1) / op.size;
    const Prefix prefix = block_scan(tiles, warps, [](std::int64_t a, std::int64_t b) { return a + b; });
    if (s < op.count) op.first[s + 1] = before + prefix.inclusive;
    before += prefix.total;
  }
}

struct PaddingArgs {
  Global<const std::uint8_t> mask;  // (B, L)
  Global<std::int64_t> lengths, position;
  std::int64_t length;
};

// A block lists the unpadded positions of a row.
MEGALODON_KERNEL void find_positions(PaddingArgs op) {
  SharedMemory memory;
  const auto warps = memory.take<std::int64_t>(kScanThreads / kWarp);
  const std::int64_t row = block_x() * op.length;
  std::int64_t before = 0;
  for (std::int64_t first = 0; first < op.length; first += kScanThreads) {
    const std::int64_t t = first + thread_index();
    const std::int64_t here = t < op.length && op.mask[row + t] == 0;
    const Prefix prefix = block_scan(here, warps, [](std::int64_t a, std::int64_t b) { return a + b; });
    if (here) op.position[row + before + prefix.inclusive - 1] = t;
    before += prefix.total;
  }
  if (thread_index() == 0) op.lengths[block_x()] = before;
}

inline Sequences resolve(Run& run, const SequenceInputs& inputs, const SequenceShape& shape) {
  constexpr std::int64_t shared = shared_size<std::int64_t>(kScanThreads / kWarp);
  Sequences sequences{.length = shape.length, .count = shape.count};
  if (inputs.cu_seqlens.defined()) {
    const Tensor& given = inputs.cu_seqlens;
    OffsetArgs args{.count = shape.count, .length = shape.length};
    args.offsets = run.workspace<std::int64_t>(shape.count + 1);
    if (given.dtype == DType::int32) {
      args.narrow = elements<const std::int32_t>(given, "cu_seqlens");
    } else {
      args.wide = elements<const std::int64_t>(given, "cu_seqlens");
    }
    run.launch(read_offsets, {}, kScanThreads, shared, args);
    sequences.offsets = args.offsets;
  }
  if (inputs.padding_mask.defined()) {
    PaddingArgs args{.mask = elements<const std::uint8_t>(inputs.padding_mask, "padding_mask"),
                     .length = shape.length};
    args.lengths = run.workspace<std::int64_t>(shape.batch);
    args.position = run.workspace<std::int64_t>(shape.batch * shape.length);
    run.launch(find_positions, {shape.batch}, kScanThreads, shared, args);
    sequences.lengths = args.lengths;
    sequences.position = args.position;
  }
  return sequences;
}

inline Tiles divide(Run& run, const Sequences& sequences, std::int64_t size) {
  Tiles tiles{.sequences = sequences, .size = size, .per_sequence = divide_up(sequences.length, size)};
  tiles.count = sequences.count * tiles.per_sequence;
  if (sequences.offsets) {
    tiles.count = sequences.length / size + sequences.count;
    TileArgs args{.offsets = sequences.offsets, .count = sequences.count, .size = size};
    args.first = run.workspace<std::int64_t>(sequences.count + 1);
    run.launch(count_tiles, {}, kScanThreads, shared_size<std::int64_t>(kScanThreads / kWarp), args);
    tiles.first = args.first;
  }
  return tiles;
}

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

template <class T>
struct ClearArgs {
  Global<const std::uint8_t> mask;  // (tokens,)
  Global<T> out;                    // (tokens, width)
  std::int64_t count, width;
};

// Padded positions of an output are 0. A warp clears a token.
template <class T>
MEGALODON_KERNEL void clear_padding_kernel(ClearArgs<T> op) {
  const std::int64_t i = block_x() * (kScanThreads / kWarp) + warp_index();
  if (i >= op.count || op.mask[i] == 0) return;
  for (std::int64_t c = lane_index(); c < op.width; c += kWarp) write(op.out[i * op.width + c], 0);
}

template <class T>
void clear_padding(Run& run, const SequenceInputs& inputs, Global<T> out, std::int64_t width) {
  if (!inputs.padding_mask.defined()) return;
  const std::int64_t count = inputs.padding_mask.numel();
  run.launch(
      clear_padding_kernel<T>, {divide_up(count, kScanThreads / kWarp)}, kScanThreads, 0,
      ClearArgs<T>{elements<const std::uint8_t>(inputs.padding_mask, "padding_mask"), out, count, width});
}

}  // namespace megalodon::cuda
