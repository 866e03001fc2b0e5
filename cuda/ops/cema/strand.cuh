// The moving average of 16-bit tokens in one pass: y, or dx as the adjoint, which walks backwards.
#pragma once

#include "common/width.cuh"
#include "ops/cema/states.cuh"

namespace megalodon::cuda {

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
MEGALODON_DEVICE std::int64_t carry_slot(const Strands& all, const Strand& strand, std::int64_t dim,
                                         std::int64_t d, std::int64_t i) {
  const std::int64_t earlier = strand.first / kTileTokens + strand.sequence / all.sequences;  // at most
  return ((earlier + i / kTileTokens) * dim + d) * 2 * kSystemDims;
}
inline std::int64_t carry_elements(const Strands& all, std::int64_t dim) {
  return (all.tiles.count / kTileTokens + all.count + 1) * dim * 2 * kSystemDims;
}

template <class T>
MEGALODON_DEVICE void keep_carry(const StrandArgs<T>& op, const Strand& strand, std::int64_t d,
                                 std::int64_t i, const Carrier& of) {
  if (lane_index() >= kSystemDims) return;
  const std::int64_t slot = carry_slot(op.strands, strand, op.system.dim, d, i) + lane_index();
  store_number(op.carries, slot, of.h, kSystemDims);
}

// The tokens of a tile that is not whole, one by one.
template <class T>
MEGALODON_DEVICE Complex<float> take_tokens(const StrandArgs<T>& op, std::int64_t d, const Shared<T>& stage,
                                            int tile, int tokens, Complex<float> h) {
  const SystemDim dim = system_dim(op.system, d, lane_index());
  const Complex<float> a = narrow(dim.a), b = narrow(dim.b);
  for (int j = 0; j < tokens; ++j) {
    h = add(multiply(a, h), b, read(stage[stage_slot(warp_index(), tile, j)]));
  }
  return h;
}

// Makes what 16 tiles end with to what they start with. A tile that is not whole is the last of its sequence.
template <class T>
MEGALODON_DEVICE void carry_along(const StrandArgs<T>& op, std::int64_t d, const Shared<Walk>& tiles,
                                  const Shared<T>& stage, int first, const Shared<float>& states,
                                  Carrier& of) {
  const int k = lane_index();
  for (int i = 0; i < kTileTokens; ++i) {
    const Walk& at = tiles[first + i];
    const int tokens = static_cast<int>(at.tile.tokens);
    const std::int64_t state = (at.tile.sequence * op.system.dim + d) * op.system.ndim + k;
    if (tokens > 0 && at.tile.first == 0) of.h = load_state(op.initial, state);
    const Complex<float> end{states[state_slot(i, 0, k)], states[state_slot(i, 1, k)]};
    states[state_slot(i, 0, k)] = of.h.re;
    states[state_slot(i, 1, k)] = of.h.im;
    of.h = tokens == kTileTokens ? carried(of, end) : take_tokens(op, d, stage, first + i, tokens, of.h);
    if (op.final && tokens > 0 && at.tile.first + tokens == at.sequence.length) {
      store_number(op.final, 2 * state, of.h);
    }
  }
}

// sums (16 tiles, 16 tokens) += G h
MEGALODON_DEVICE void add_outputs(float (&sums)[2][4], const Shared<float>& states,
                                  const OutputFactor& factor) {
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    std::uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int slot = state_slot(lane_index() / 4 + i % 2 * 8, part, lane_index() % 4 * 2 + i / 2 * 8);
      const Pack<float, 2> pair = *reinterpret_cast<const Pack<float, 2>*>(address(states, slot, 2));
      std::uint32_t parts[2];
      split<BFloat16>(pair.element[0], pair.element[1], parts);
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
                              const Shared<Walk>& tiles, const Shared<T>& stage, int first,
                              const Shared<float>& states, Carrier& of) {
  std::uint32_t x[4];
  load_matrices<false>(stage, stage_slot(warp_index(), first + lane_index() % 16, lane_index() / 16 * 8), x);
  warp_barrier();  // the states of the tiles before are read
  tile_ends<T>(x, factors.state, states);
  float y[2][4] = {};
  add_product<T>(y, x, factors.direct.factor);
  warp_barrier();
  if (lane_index() < op.system.ndim) carry_along(op, d, tiles, stage, first, states, of);
  warp_barrier();
#pragma unroll
  for (int i = 0; i < 8; ++i) y[i / 4][i % 4] *= factors.direct.unscale;
  add_outputs(y, states, factors.output);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int slot = stage_slot(warp_index(), first + sum_row(i % 2 * 2), 8 * (i / 2) + sum_column(0));
    *reinterpret_cast<std::uint32_t*>(address(stage, slot, 2)) =
        write_pair<T>(y[i / 2][i % 2 * 2], y[i / 2][i % 2 * 2 + 1]);
  }
}

// A sequence without tokens ends with what it starts with.
template <class T>
MEGALODON_DEVICE void pass_states(const StrandArgs<T>& op, const Strand& strand, std::int64_t d) {
  for (std::int64_t s = strand.sequence + lane_index(); s < strand.end; s += kWarp) {
    if (sequence_at(op.strands.tiles.sequences, s).length > 0) continue;
    for (std::int64_t k = 0; k < op.system.ndim; ++k) {
      const std::int64_t state = (s * op.system.dim + d) * op.system.ndim + k;
      store_number(op.final, 2 * state, load_state(op.initial, state));
    }
  }
}

template <bool kWide, class T>
MEGALODON_KERNEL_OF(kStrandThreads)
cema_strand(StrandArgs<T> op) {
  SharedMemory memory;
  const Shared<T> stage = memory.take<T>(kStageElements);
  const Shared<float> states =
      memory.take<float>(kStrandChannels * kStateElements) + warp_index() * kStateElements;
  const Shared<Walk> tiles = memory.take<Walk>(3 * kStageTiles);  // of this stage and the next two
  const auto tiles_of = [&](std::int64_t i) { return tiles + i % 3 * kStageTiles; };
  const Strand strand = strand_of(op.strands, op.system.dim);
  const std::int64_t d = strand.channel + warp_index(), dim = op.system.dim;
  const bool works = d < dim;
  Factors<T> factors;
  Carrier of;
  if (works) {
    factors = {state_factor<T, false>(op.system, d), direct_factor<T>(op.system, d),
               output_factor(op.system, d)};
    of = carrier<T>(op.system, d);
    if (op.final) pass_states(op, strand, d);
  }
  if (warp_index() < 2) find_tiles(op.strands, strand, warp_index(), tiles_of(warp_index()));
  block_barrier();
  put_share(stage, fetch<kWide>(op.strands, strand, dim, tiles_of(0), op.x));
  block_barrier();
  for (std::int64_t i = 0; i < strand.stages; ++i) {
    const Share<T> next = fetch<kWide>(op.strands, strand, dim, tiles_of(i + 1), op.x);
    if (warp_index() == 0) find_tiles(op.strands, strand, i + 2, tiles_of(i + 2));
    if (works) {
      for (int first = 0; first < kStageTiles; first += kTileTokens) {
        const std::int64_t tile = i * kStageTiles + first;
        if (tile >= strand.tiles) continue;
        if (op.carries) keep_carry(op, strand, d, tile, of);
        advance(op, d, factors, tiles_of(i), stage, first, states, of);
      }
    }
    block_barrier();
    deliver<kWide>(op.strands, strand, dim, tiles_of(i), take_share(stage), op.y);
    put_share(stage, next);
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
  const std::int64_t shared = shared_size<T>(kStageElements) +
                              shared_size<float>(kStrandChannels * kStateElements) +
                              shared_size<Walk>(3 * kStageTiles);
  run.launch(wide ? cema_strand<true, T> : cema_strand<false, T>, {blocks}, kStrandThreads, shared, args);
}

}  // namespace megalodon::cuda
