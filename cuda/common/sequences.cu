#include "common/sequences.cuh"

#include "common/scan.cuh"

namespace megalodon::cuda {
namespace {

constexpr int kScanThreads = 256;

// Calls use(i, value(0) ... value(i) combined, from 0 on) for i < count, and returns the last of those.
template <class Value, class Combine, class Use>
MEGALODON_DEVICE std::int64_t scan_values(std::int64_t count, const Value& value, const Combine& combine,
                                          const Use& use) {
  SharedMemory memory;
  const auto warps = memory.take<std::int64_t>(kScanThreads / kWarp);
  std::int64_t before = 0;
  for (std::int64_t first = 0; first < count; first += kScanThreads) {
    const std::int64_t i = first + thread_index();
    const Prefix prefix = block_scan(i < count ? value(i) : 0, warps, combine);
    if (i < count) use(i, combine(before, prefix.inclusive));
    before = combine(before, prefix.total);
  }
  return before;
}

MEGALODON_DEVICE std::int64_t sum_of(std::int64_t a, std::int64_t b) { return a + b; }
MEGALODON_DEVICE std::int64_t larger_of(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

struct OffsetArgs {
  Global<const std::int32_t> narrow;  // the caller's offsets, of one type or the other
  Global<const std::int64_t> wide;
  Global<std::int64_t> offsets;
  std::int64_t count, length;
};

// Offsets that are out of order or of range are wrong, but must neither lead out of memory nor leave out a
// token, whose results would not be written: each becomes the largest so far inside [0, L], the last one L.
MEGALODON_KERNEL void read_offsets(OffsetArgs op) {
  scan_values(
      op.count + 1,
      [&](std::int64_t i) {
        const std::int64_t offset = op.narrow ? op.narrow[i] : op.wide[i];
        if (i == 0) return std::int64_t{0};
        return i == op.count || offset > op.length ? op.length : offset;
      },
      larger_of, [&](std::int64_t i, std::int64_t largest) { op.offsets[i] = largest; });
}

struct TileArgs {
  Global<const std::int64_t> offsets;
  Global<std::int64_t> first;
  std::int64_t count, size;
};

MEGALODON_KERNEL void count_tiles(TileArgs op) {
  if (thread_index() == 0) op.first[0] = 0;
  scan_values(
      op.count, [&](std::int64_t s) { return (op.offsets[s + 1] - op.offsets[s] + op.size - 1) / op.size; },
      sum_of, [&](std::int64_t s, std::int64_t tiles) { op.first[s + 1] = tiles; });
}

struct PaddingArgs {
  Global<const std::uint8_t> mask;  // (B, L)
  Global<std::int64_t> lengths, position;
  std::int64_t length;
};

// A block lists the unpadded positions of a row.
MEGALODON_KERNEL void find_positions(PaddingArgs op) {
  const std::int64_t row = block_x() * op.length;
  const auto counts = [&](std::int64_t t) { return std::int64_t{op.mask[row + t] == 0}; };
  const std::int64_t found = scan_values(op.length, counts, sum_of, [&](std::int64_t t, std::int64_t upto) {
    if (counts(t) != 0) op.position[row + upto - 1] = t;
  });
  if (thread_index() == 0) op.lengths[block_x()] = found;
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
