#include "common/sequences.cuh"

#include "common/scan.cuh"

namespace megalodon::cuda {
namespace {

constexpr int kScanThreads = 256;

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

}  // namespace

Sequences resolve(Run& run, const SequenceInputs& inputs, const SequenceShape& shape) {
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

Tiles divide(Run& run, const Sequences& sequences, std::int64_t size) {
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

}  // namespace megalodon::cuda
