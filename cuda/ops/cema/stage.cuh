// A block of 8 or 16 warps, each with a channel of its own, walks along a strand of tiles in stages of 32
// tiles. A stage is read once from device memory, where channels are neighbours, and lies in shared memory
// with the tokens of a channel as neighbours, as products of matrices want them; there outputs take the place
// of inputs.
#pragma once

#include "ops/cema/system.cuh"

namespace megalodon::cuda {

inline constexpr int kStageTiles = 32;
inline constexpr int kStageTokens = kStageTiles * kTileTokens;

// Of the stages of a block, in shared memory.
template <int kChannels>
inline constexpr int kStageElements = kChannels * kStageTokens + 4 * kTileTokens;

// The tiles that one block walks along: those of consecutive sequences, one after another. Packed documents
// are one strand, a long batch row is one, several short ones are.
struct Strands {
  Tiles tiles;             // of kTileTokens
  std::int64_t sequences;  // of a strand, the last may have fewer
  std::int64_t count;
  bool backward;  // every sequence from its last token to the first
};

inline Strands strands(Run& run, const Sequences& sequences, bool backward) {
  Strands all{.tiles = divide(run, sequences, kTileTokens), .backward = backward};
  const std::int64_t fill = std::max<std::int64_t>(kStageTiles / all.tiles.per_sequence, 1);
  all.sequences = all.tiles.first ? sequences.count : fill;
  all.count = divide_up(sequences.count, all.sequences);
  return all;
}

// What a block works on.
struct Strand {
  std::int64_t channel;       // the first of the block
  std::int64_t index;         // of the strand
  std::int64_t first, tiles;  // its tiles are [first, first + tiles)
};

template <int kChannels>
MEGALODON_DEVICE Strand strand_of(const Strands& all, std::int64_t dim) {
  const std::int64_t columns = (dim + kChannels - 1) / kChannels, index = block_x() / columns;
  const std::int64_t begin = index * all.sequences, count = all.tiles.sequences.count;
  const std::int64_t end = begin + all.sequences < count ? begin + all.sequences : count;
  const std::int64_t first = first_tile(all.tiles, begin);
  return {block_x() % columns * kChannels, index, first, first_tile(all.tiles, end) - first};
}

MEGALODON_DEVICE std::int64_t stages_of(const Strand& strand) {
  return (strand.tiles + kStageTiles - 1) / kStageTiles;
}

// The tiles of a stage. One past the end of the strand, or before its start, has no tokens.
struct StageTiles {
  Shared<Walk> at;
  Shared<int> kind;  // as a walk along the strand meets them, and as one in the opposite direction does
};

// A kind is the tokens of a tile and whether the walk enters a sequence with it, or leaves one.
inline constexpr int kEnters = 32, kLeaves = 64;
MEGALODON_DEVICE int tokens_of(int kind) { return kind % kEnters; }

// Where the second walk meets tile i of a stage: 16 tiles at a time, in the opposite order.
MEGALODON_DEVICE int opposite(int i) { return i ^ (kTileTokens - 1); }

MEGALODON_DEVICE void find_tiles(const Strands& all, const Strand& strand, std::int64_t stage,
                                 const StageTiles& tiles) {
  const std::int64_t i = stage * kStageTiles + lane_index();
  const Walk at = i >= 0 && i < strand.tiles ? walk(all.tiles, strand.first + i) : Walk{};
  const int tokens = static_cast<int>(at.tile.tokens);
  const bool first = tokens > 0 && at.tile.first == 0;
  const bool last = tokens > 0 && at.tile.first + tokens == at.sequence.length;
  tiles.at[lane_index()] = at;
  tiles.kind[lane_index()] = tokens + first * kEnters + last * kLeaves;
  tiles.kind[kStageTiles + opposite(lane_index())] = tokens + last * kEnters + first * kLeaves;
}

// Those of three stages, of which a block uses two while it fills the third.
MEGALODON_DEVICE StageTiles take_tiles(SharedMemory& memory) {
  const Shared<Walk> at = memory.take<Walk>(3 * kStageTiles);
  return {at, memory.take<int>(6 * kStageTiles)};
}
inline constexpr std::int64_t kTilesSize =
    shared_size<Walk>(3 * kStageTiles) + shared_size<int>(6 * kStageTiles);

MEGALODON_DEVICE StageTiles tiles_of(const StageTiles& all, std::int64_t stage) {
  const int buffer = static_cast<int>((stage + 3) % 3);
  return {all.at + buffer * kStageTiles, all.kind + buffer * 2 * kStageTiles};
}

// Where token j of a tile stands.
template <class T>
MEGALODON_DEVICE Global<T> stage_token(const Strands& all, const Walk& at, const Tokens<T>& tokens, int j) {
  const std::int64_t place = at.tile.first + j;
  return token(
      tokens, at.sequence.row,
      time_of(all.tiles.sequences, at.sequence, all.backward ? at.sequence.length - 1 - place : place));
}

// The element of a stage in shared memory. Halves of tiles trade places so that the same half of eight tiles
// lies in different banks, and so do the two groups of eight channels.
MEGALODON_DEVICE int stage_slot(int channel, int tile, int token) {
  return channel * kStageTokens + channel / 8 * 32 + tile * kTileTokens + (token ^ tile / 4 % 2 * 8);
}

// A thread's share of a stage: two tokens of eight channels, as they lie in device memory.
template <class T>
struct Share {
  Pack<T, 8> token[2];
};
template <int kChannels>
inline constexpr int kSharePairs =
    kStageTokens / 2 / kChannels;  // of tokens that a warp has, or half of a warp
template <int kChannels>
MEGALODON_DEVICE int share_tile() {
  return (warp_index() * kSharePairs<kChannels> + lane_index() % kSharePairs<kChannels>) / 8;
}
template <int kChannels>
MEGALODON_DEVICE int share_channel() {
  return lane_index() / kSharePairs<kChannels> * 8;
}
MEGALODON_DEVICE int share_token() { return lane_index() % 8 * 2; }

// Starts to copy this thread's share of a stage to where take_copied finds it: 0 where there is no token or
// channel. kWide: eight channels are read and written as one, as dim, strides and addresses allow.
template <bool kWide, int kChannels, class T>
MEGALODON_DEVICE void start_copy(const Strands& all, const Strand& strand, std::int64_t dim,
                                 const StageTiles& tiles, const Tokens<const T>& from,
                                 const Shared<T>& copied) {
  const Walk& at = tiles.at[share_tile<kChannels>()];
  const std::int64_t d = strand.channel + share_channel<kChannels>();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool exists = share_token() + i < at.tile.tokens && d < dim;
    const Global<const T> data = exists ? stage_token(all, at, from, share_token() + i) : from.data;
    const int slot = (i * kChannels * kWarp + thread_index()) * 8;
    if constexpr (kWide) {
      copy_async(copied, slot, data, d, exists);
    } else {
#pragma unroll 1
      for (int c = 0; c < 8; ++c) copied[slot + c] = exists && d + c < dim ? data[d + c] : T{};
    }
  }
}

// This thread's share of a stage, once its copies have arrived.
template <int kChannels, class T>
MEGALODON_DEVICE Share<T> take_copied(const Shared<T>& copied) {
  Share<T> share;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int slot = (i * kChannels * kWarp + thread_index()) * 8;
    share.token[i] = *reinterpret_cast<const Pack<T, 8>*>(address(copied, slot, 8));
  }
  return share;
}

// Between a thread's share and its place in shared memory, which no other thread's share touches. kReversed:
// tokens of each tile in the opposite order.
template <int kChannels, bool kReversed, class T>
MEGALODON_DEVICE void put_share(const Shared<T>& stage, const Share<T>& share) {
  const int token = kReversed ? kTileTokens - 2 - share_token() : share_token();
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const int slot = stage_slot(share_channel<kChannels>() + c, share_tile<kChannels>(), token);
    *reinterpret_cast<Pack<T, 2>*>(address(stage, slot, 2)) = {share.token[kReversed].element[c],
                                                               share.token[!kReversed].element[c]};
  }
}
template <int kChannels, class T>
MEGALODON_DEVICE Share<T> take_share(const Shared<T>& stage) {
  Share<T> share;
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const int slot = stage_slot(share_channel<kChannels>() + c, share_tile<kChannels>(), share_token());
    const Pack<T, 2> pair = *reinterpret_cast<const Pack<T, 2>*>(address(stage, slot, 2));
    share.token[0].element[c] = pair.element[0];
    share.token[1].element[c] = pair.element[1];
  }
  return share;
}

// Writes this thread's share of a stage to where it belongs.
template <bool kWide, int kChannels, class T>
MEGALODON_DEVICE void deliver(const Strands& all, const Strand& strand, std::int64_t dim,
                              const StageTiles& tiles, const Shared<T>& stage, const Tokens<T>& to) {
  const Walk& at = tiles.at[share_tile<kChannels>()];
  const std::int64_t d = strand.channel + share_channel<kChannels>();
  Share<T> share;
  if constexpr (kWide) share = take_share<kChannels>(stage);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (share_token() + i >= at.tile.tokens || d >= dim) continue;
    const Global<T> data = stage_token(all, at, to, share_token() + i);
    if constexpr (kWide) {
      *reinterpret_cast<Pack<T, 8>*>(address(data, d, 8)) = share.token[i];
    } else {
#pragma unroll 1
      for (int c = 0; c < 8 && d + c < dim; ++c) {
        data[d + c] =
            stage[stage_slot(share_channel<kChannels>() + c, share_tile<kChannels>(), share_token() + i)];
      }
    }
  }
}

}  // namespace megalodon::cuda
