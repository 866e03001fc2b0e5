// The moving average of 16-bit tokens in one pass: y, or dx as the adjoint, which walks backwards.
#pragma once

#include "common/width.cuh"
#include "ops/cema/states.cuh"

namespace megalodon::cuda {

inline constexpr int kStrandChannels = 16;  // 32 bytes of a token: what memory moves at least
inline constexpr int kStrandThreads = kStrandChannels * kWarp;

template <class T>
struct StrandArgs {
  Strands strands;
  SystemArgs system;
  Tokens<const T> x;
  Tokens<T> y;
  Global<const float> initial;  // (sequences, D, N, 2) or absent
  Global<float> final;          // likewise
  Global<float> carries;        // as carry_slot says, or absent
};

// The state before tile i of the strand, for every 16th: 32 floats per channel.
MEGALODON_DEVICE std::int64_t carry_slot(const Strand& strand, std::int64_t dim, std::int64_t d,
                                         std::int64_t i) {
  const std::int64_t earlier =
      strand.first / kTileTokens + strand.index;  // carries of other strands, at most
  return ((earlier + i / kTileTokens) * dim + d) * 2 * kSystemDims;
}
inline std::int64_t carry_elements(const Strands& all, std::int64_t dim) {
  return (all.tiles.count / kTileTokens + all.count + 1) * dim * 2 * kSystemDims;
}

template <class T>
MEGALODON_DEVICE void keep_carry(const StrandArgs<T>& op, const Strand& strand, std::int64_t d,
                                 std::int64_t i, const Carrier& of) {
  if (lane_index() >= kSystemDims) return;
  const std::int64_t slot = carry_slot(strand, op.system.dim, d, i) + lane_index();
  store_number(op.carries, slot, of.h, kSystemDims);
}

MEGALODON_DEVICE Complex<float> load_carry(const Global<const float>& carries, const Strand& strand,
                                           std::int64_t dim, std::int64_t d, std::int64_t i) {
  const std::int64_t slot = carry_slot(strand, dim, d, i) + lane_index();
  return load_number<Complex<float>>(carries, slot, kSystemDims);
}

// The tokens of a tile that is not whole, one by one.
template <class T>
MEGALODON_DEVICE Complex<float> take_tokens(const StrandArgs<T>& op, std::int64_t d, const Shared<T>& stage,
                                            int tile, int tokens, Complex<float> h) {
  const auto dim = system_dim<float>(op.system, d, lane_index());
#pragma unroll 1
  for (int j = 0; j < tokens; ++j) {
    h = add(multiply(dim.a, h), dim.b, read(stage[stage_slot(warp_index(), tile, j)]));
  }
  return h;
}

// The states that tiles [first, first + 16) of the stage start with, for dim lane_index(). A tile that is not
// whole is the last of its sequence.
template <class T>
MEGALODON_DEVICE void find_states(const StrandArgs<T>& op, std::int64_t d, const StageTiles& tiles,
                                  const Shared<T>& stage, int first, const Shared<float>& states,
                                  Carrier& of) {
  const auto state = [&](int i) {
    return (tiles.at[first + i].tile.sequence * op.system.dim + d) * op.system.ndim + lane_index();
  };
  carry_along(
      tiles.kind + first, states, lane_index(), of, [&](int i) { return load_state(op.initial, state(i)); },
      [&](int i, int tokens, Complex<float>) { return take_tokens(op, d, stage, first + i, tokens, of.h); },
      [&](int i) {
        if (op.final) store_number(op.final, 2 * state(i), of.h);
      });
}

// sums (16 tiles, 16 tokens) += G h
MEGALODON_DEVICE void add_outputs(float (&sums)[2][4], const Shared<float>& states,
                                  const OutputFactor& factor) {
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    std::uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int slot = state_slot(part, lane_index() % 4 * 2 + i / 2 * 8, lane_index() / 4 + i % 2 * 8);
      std::uint32_t parts[2];
      split<BFloat16>(states[slot], states[slot + kStatePitch], parts);
      high[i] = parts[0];
      low[i] = parts[1];
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      multiply_add(BFloat16{}, sums[j], low, factor.part[0][part][j]);
      multiply_add(BFloat16{}, sums[j], high, factor.part[1][part][j]);
      multiply_add(BFloat16{}, sums[j], high, factor.part[0][part][j]);
    }
  }
}

template <class T>
struct Factors {
  StateFactor<T> state;
  DirectFactor<T> direct;
  OutputFactor output;
};

// Tiles [first, first + 16) of the stage, for the channel of this warp.
template <class T>
MEGALODON_DEVICE void advance(const StrandArgs<T>& op, std::int64_t d, const Factors<T>& factors,
                              const StageTiles& tiles, const Shared<T>& stage, int first,
                              const Shared<float>& states, Carrier& of) {
  const int slot = stage_slot(warp_index(), first + lane_index() % 16, lane_index() / 16 * 8);
  std::uint32_t x[4];
  load_matrices<false>(stage, slot, x);
  warp_barrier();  // the states of the tiles before are read
  tile_ends<false, T>(x, factors.state, states);
  warp_barrier();
  if (lane_index() < op.system.ndim) find_states(op, d, tiles, stage, first, states, of);
  warp_barrier();
  float y[2][4] = {};
  load_matrices<false>(stage, slot, x);  // again: registers are short
  add_product<T>(y, x, factors.direct.factor);
#pragma unroll
  for (int i = 0; i < 8; ++i) y[i / 4][i % 4] *= factors.direct.unscale;
  add_outputs(y, states, factors.output);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int to = stage_slot(warp_index(), first + sum_row(i % 2 * 2), 8 * (i / 2) + sum_column(0));
    *reinterpret_cast<std::uint32_t*>(address(stage, to, 2)) =
        write_pair<T>(y[i / 2][i % 2 * 2], y[i / 2][i % 2 * 2 + 1]);
  }
}

// A sequence without tokens ends with what it starts with.
template <class T>
MEGALODON_DEVICE void pass_states(const StrandArgs<T>& op, const Strand& strand, std::int64_t d) {
  const Sequences& all = op.strands.tiles.sequences;
  const std::int64_t begin = strand.index * op.strands.sequences;
  for (std::int64_t i = lane_index(); i < op.strands.sequences; i += kWarp) {
    const std::int64_t s = begin + i;
    if (s >= all.count || sequence_at(all, s).length > 0) continue;
    for (std::int64_t k = 0; k < op.system.ndim; ++k) {
      const std::int64_t state = (s * op.system.dim + d) * op.system.ndim + k;
      store_number(op.final, 2 * state, load_state(op.initial, state));
    }
  }
}

template <bool kWide, class T>
MEGALODON_KERNEL MEGALODON_RESIDENT(kStrandThreads, 1) void cema_strand(StrandArgs<T> op) {
  SharedMemory memory;
  const Shared<T> stage = memory.take<T>(kStageElements<kStrandChannels>),
                  copied = memory.take<T>(kStrandChannels * kStageTokens);
  const Shared<float> states =
      memory.take<float>(kStrandChannels * kStateElements) + warp_index() * kStateElements;
  const StageTiles tiles = take_tiles(memory);
  const Strand strand = strand_of<kStrandChannels>(op.strands, op.system.dim);
  const std::int64_t d = strand.channel + warp_index(), dim = op.system.dim;
  const bool works = d < dim;
  Factors<T> factors;
  Carrier of{};
  if (works) {
    factors = {state_factor<T>(op.system, d), direct_factor<T>(op.system, d), output_factor(op.system, d)};
    of = carrier(op.system, d, lane_index());
    if (op.final) pass_states(op, strand, d);
  }
  if (warp_index() < 2) find_tiles(op.strands, strand, warp_index(), tiles_of(tiles, warp_index()));
  block_barrier();
  const auto copy = [&](std::int64_t i) {
    start_copy<kWide, kStrandChannels>(op.strands, strand, dim, tiles_of(tiles, i), op.x, copied);
    copies_commit();
  };
  copy(0);
  copies_wait<0>();
  put_share<kStrandChannels, false>(stage, take_copied<kStrandChannels>(copied));
  block_barrier();
  for (std::int64_t i = 0; i < stages_of(strand); ++i) {
    copy(i + 1);
    if (warp_index() == 0) find_tiles(op.strands, strand, i + 2, tiles_of(tiles, i + 2));
    for (int first = 0; works && first < kStageTiles; first += kTileTokens) {
      const std::int64_t tile = i * kStageTiles + first;
      if (tile >= strand.tiles) continue;
      if (op.carries) keep_carry(op, strand, d, tile, of);
      advance(op, d, factors, tiles_of(tiles, i), stage, first, states, of);
    }
    block_barrier();
    deliver<kWide, kStrandChannels>(op.strands, strand, dim, tiles_of(tiles, i), stage, op.y);
    copies_wait<0>();
    put_share<kStrandChannels, false>(stage, take_copied<kStrandChannels>(copied));
    block_barrier();
  }
}

// Eight channels of a token may be moved as one.
inline bool wide_tokens(std::int64_t dim, std::initializer_list<const Tensor*> tensors) {
  bool whole = dim % 8 == 0;
  for (const Tensor* tensor : tensors) whole &= tensor->stride(0) % 8 == 0 && tensor->stride(1) % 8 == 0;
  return whole && aligned(8, tensors);
}

template <class T>
void walk_strands(Run& run, const StrandArgs<T>& args, bool wide) {
  const std::int64_t blocks = divide_up(args.system.dim, kStrandChannels) * args.strands.count;
  const std::int64_t shared = shared_size<T>(kStageElements<kStrandChannels>) +
                              shared_size<T>(kStrandChannels * kStageTokens) +
                              shared_size<float>(kStrandChannels * kStateElements) + kTilesSize;
  run.launch(wide ? cema_strand<true, T> : cema_strand<false, T>, {blocks}, kStrandThreads, shared, args);
}

}  // namespace megalodon::cuda
