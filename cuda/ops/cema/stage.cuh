// A block of 16 warps, each with a channel of its own, walks along a strand of tiles in stages of 32 tiles. A
// stage is read once from device memory, where channels are neighbours, and lies in shared memory with the
// tokens of a channel as neighbours, as products of matrices want them; there outputs take the place of
// inputs.
#pragma once

#include "ops/cema/system.cuh"

namespace megalodon::cuda {

inline constexpr int kStrandChannels = 16;  // 32 bytes of a token: what memory moves at least
inline constexpr int kStrandThreads = kStrandChannels * kWarp;
inline constexpr int kStageTiles = 32;
inline constexpr int kStageTokens = kStageTiles * kTileTokens;
inline constexpr int kStageElements = kStrandChannels * kStageTokens + 4 * kTileTokens;

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
  std::int64_t channel;        // the first of the block
  std::int64_t sequence, end;  // sequences [sequence, end)
  std::int64_t first, tiles;   // its tiles are [first, first + tiles)
  std::int64_t stages;
};

MEGALODON_DEVICE Strand strand_of(const Strands& all, std::int64_t dim) {
  const std::int64_t columns = (dim + kStrandChannels - 1) / kStrandChannels, s = block_x() / columns;
  Strand strand{.channel = block_x() % columns * kStrandChannels, .sequence = s * all.sequences};
  const std::int64_t end = strand.sequence + all.sequences, count = all.tiles.sequences.count;
  strand.end = end < count ? end : count;
  strand.first = first_tile(all.tiles, strand.sequence);
  strand.tiles = first_tile(all.tiles, strand.end) - strand.first;
  strand.stages = (strand.tiles + kStageTiles - 1) / kStageTiles;
  return strand;
}

// The tiles of a stage. A tile past the end of the strand has no tokens.
MEGALODON_DEVICE void find_tiles(const Strands& all, const Strand& strand, std::int64_t stage,
                                 const Shared<Walk>& tiles) {
  const std::int64_t i = stage * kStageTiles + lane_index();
  tiles[lane_index()] = i < strand.tiles ? walk(all.tiles, strand.first + i) : Walk{};
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
MEGALODON_DEVICE int share_tile() { return warp_index() * 2 + lane_index() % 16 / 8; }
MEGALODON_DEVICE int share_token() { return lane_index() % 8 * 2; }
MEGALODON_DEVICE int share_channel() { return lane_index() / 16 * 8; }

// kWide: eight channels are read and written as one, as dim, strides and addresses allow. What does not exist
// is 0.
template <bool kWide, class T>
MEGALODON_DEVICE Share<T> fetch(const Strands& all, const Strand& strand, std::int64_t dim,
                                const Shared<Walk>& tiles, const Tokens<const T>& from) {
  const Walk& at = tiles[share_tile()];
  const std::int64_t d = strand.channel + share_channel();
  Share<T> share{};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (share_token() + i >= at.tile.tokens || d >= dim) continue;
    const Global<const T> data = stage_token(all, at, from, share_token() + i);
    if constexpr (kWide) {
      share.token[i] = *reinterpret_cast<const Pack<T, 8>*>(address(data, d, 8));
    } else {
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        if (d + c < dim) share.token[i].element[c] = data[d + c];
      }
    }
  }
  return share;
}

template <bool kWide, class T>
MEGALODON_DEVICE void deliver(const Strands& all, const Strand& strand, std::int64_t dim,
                              const Shared<Walk>& tiles, const Share<T>& share, const Tokens<T>& to) {
  const Walk& at = tiles[share_tile()];
  const std::int64_t d = strand.channel + share_channel();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (share_token() + i >= at.tile.tokens || d >= dim) continue;
    const Global<T> data = stage_token(all, at, to, share_token() + i);
    if constexpr (kWide) {
      *reinterpret_cast<Pack<T, 8>*>(address(data, d, 8)) = share.token[i];
    } else {
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        if (d + c < dim) data[d + c] = share.token[i].element[c];
      }
    }
  }
}

// Between a thread's share and its place in shared memory, which no other thread's share touches.
template <class T>
MEGALODON_DEVICE void put_share(const Shared<T>& stage, const Share<T>& share) {
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const int slot = stage_slot(share_channel() + c, share_tile(), share_token());
    *reinterpret_cast<Pack<T, 2>*>(address(stage, slot, 2)) = {share.token[0].element[c],
                                                               share.token[1].element[c]};
  }
}
template <class T>
MEGALODON_DEVICE Share<T> take_share(const Shared<T>& stage) {
  Share<T> share;
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const int slot = stage_slot(share_channel() + c, share_tile(), share_token());
    const Pack<T, 2> pair = *reinterpret_cast<const Pack<T, 2>*>(address(stage, slot, 2));
    share.token[0].element[c] = pair.element[0];
    share.token[1].element[c] = pair.element[1];
  }
  return share;
}

}  // namespace megalodon::cuda
