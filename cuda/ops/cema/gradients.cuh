// The gradients of p, q, gamma and omega for 16-bit tokens. dx has been found by the adjoint walk, which left
// its state at every 16th tile; this walk goes along the same strands in the opposite direction, so forwards
// in time, with h as its own state. All that the gradients need of a tile, h being its state before and
// lambda = dL / d(state after), are moments, which add up over tiles as products whose depth is the tiles:
//
//   dy_t h    from G      x_s lambda    from W      dy_t x_s    from K      lambda conj(h)    from a^16
//
// Tokens of dy stand backwards in time, as the adjoint walks, those of x forwards, and h stands for its
// conjugate: then h and lambda are made with the same a and the same W.
#pragma once

#include "ops/cema/strand.cuh"

namespace megalodon::cuda {

inline constexpr int kMomentChannels = 8;  // the moments of a channel take half of its warp's registers
inline constexpr int kMomentThreads = kMomentChannels * kWarp;

template <class T>
struct MomentArgs {
  Strands strands;    // backward
  SystemArgs system;  // adjoint
  Tokens<const T> x, dy;
  Global<const float> initial, dstate;  // (sequences, D, N, 2) or absent
  Global<const float> carries;
  Global<float> dp, dq, dgamma, domega;  // one row of sums per strand, D last; domega may be absent
};

struct ChannelMoments {
  float states[4][4];       // (token of dy, column of h)
  float lambdas[4][4];      // (token of x, column of lambda)
  float tokens[2][4];       // (token of dy, token of x)
  Complex<float> carry[2];  // of dims lane_index() / 4 and that 8 further, over every fourth pair of tiles
};

template <class T>
MEGALODON_DEVICE std::int64_t sum_slot(const MomentArgs<T>& op, const Strand& strand, std::int64_t d, int k) {
  return (strand.index * op.system.ndim + k) * 2 * op.system.dim + d;
}

// The states that tiles [first, first + 16) of the stage start with: of lambda by lanes [0, 16), of h by the
// others, which meet the tiles in the opposite order. A tile that is not whole is the first in time.
template <class T>
MEGALODON_DEVICE void find_states(const MomentArgs<T>& op, std::int64_t d, const StageTiles& tiles, int first,
                                  const Shared<float>& states, Carrier& of) {
  const bool forwards = lane_index() >= kSystemDims;
  const int k = lane_index() % kSystemDims;
  const auto start = [&](int i) {
    const Walk& at = tiles.at[first + (forwards ? opposite(i) : i)];
    const std::int64_t state = (at.tile.sequence * op.system.dim + d) * op.system.ndim + k;
    return forwards ? conj(load_state(op.initial, state)) : load_state(op.dstate, state);
  };
  const auto rest = [&](int, int tokens, Complex<float> end) {
    const Complex<float> a = system_dim<float>(op.system, d, k).a;
    return add(multiply(power(a, tokens), of.h), multiply(of.b, end));
  };
  carry_along(tiles.kind + (forwards ? kStageTiles + first : first), states + (forwards ? kStateElements : 0),
              k, of, start, rest, [&](int) { of.h = {}; });
}

// The gradients through an initial state h0 inside its tile of n < 16 tokens, for dim lane_index():
//   dq = conj(h0) sum_t lambda_t conj(q)^t       dgamma = conj(h0) sum_t dy_t conj(q)^(t + 1)
// The moments find 0 in the place of h0.
template <class T>
MEGALODON_DEVICE void add_initial(const MomentArgs<T>& op, const Strand& strand, std::int64_t d, int first,
                                  int i, int tokens, const Shared<T>& dy, const Shared<float>& states) {
  const int k = lane_index();
  const auto dim = system_dim<float>(op.system, d, k);
  const Complex<float> a = dim.a, b = dim.b;
  const Complex<float> gamma = conj(load_state(op.system.gamma, d * op.system.ndim + k));
  Complex<float> lambda{states[state_slot(0, k, i)], states[state_slot(1, k, i)]}, dq{}, dgamma{};
#pragma unroll 1
  for (int j = 0; j < tokens; ++j) {
    const float value = read(dy[stage_slot(warp_index(), first + i, j)]);
    dq = add(multiply(a, dq), add(lambda, gamma, value));
    dgamma = add(multiply(a, dgamma), from_real<Complex<float>>(value));
    lambda = add(multiply(a, lambda), b, value);
  }
  const Shared<float> start = states + kStateElements;
  const int re = state_slot(0, k, opposite(i)), im = state_slot(1, k, opposite(i));
  const Complex<float> h0{start[re], start[im]};
  start[re] = start[im] = 0;
  const auto accumulate = [&](const Global<float>& sums, Complex<float> value) {
    const std::int64_t slot = sum_slot(op, strand, d, k);
    const auto before = load_number<Complex<float>>(Global<const float>(sums), slot, op.system.dim);
    store_number(sums, slot, add(before, multiply(value, h0)), op.system.dim);
  };
  accumulate(op.dq, dq);
  accumulate(op.dgamma, multiply(a, dgamma));
}

// Fragments of tokens as sums of bfloat16: one part of bfloat16, two of float16.
template <class T>
struct TokenParts {
  static constexpr int count = std::is_same_v<T, BFloat16> ? 1 : 2;
  std::uint32_t part[count][4];
};

template <class T>
MEGALODON_DEVICE TokenParts<T> token_parts(const std::uint32_t (&tokens)[4]) {
  TokenParts<T> left;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (TokenParts<T>::count == 1) {
      left.part[0][i] = tokens[i];
    } else {
      std::uint32_t parts[2];
      split<BFloat16>(read_first<T>(tokens[i]), read_second<T>(tokens[i]), parts);
      left.part[0][i] = parts[0];
      left.part[1][i] = parts[1];
    }
  }
  return left;
}

// sums (16 tokens, 8 columns) += tokens^T states, for states of tiles 2 (lane % 4) and the next, and of those
// eight further: products of parts down to 2^-24.
template <class T>
MEGALODON_DEVICE void add_moments(float (&sums)[4], const TokenParts<T>& tokens,
                                  const float (&states)[2][2]) {
  std::uint32_t parts[2][3];
#pragma unroll
  for (int half = 0; half < 2; ++half) split<BFloat16>(states[half][0], states[half][1], parts[half]);
#pragma unroll
  for (int part = 2; part >= 0; --part) {
#pragma unroll
    for (int i = TokenParts<T>::count - 1; i >= 0; --i) {
      if (i + part < 3) multiply_add(BFloat16{}, sums, tokens.part[i], {parts[0][part], parts[1][part]});
    }
  }
}

// The moments with states, of dims [8 dims, 8 dims + 8).
template <class T>
MEGALODON_DEVICE void add_state_moments(ChannelMoments& moments, int dims, const TokenParts<T>& x,
                                        const TokenParts<T>& dy, const Shared<float>& states) {
  const Shared<const float> lambdas = states, h = states + kStateElements;
  float ahead[2][2][2], back[2][2][2];  // of lambda and h: (part, half, tile)
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int part = i / 2, half = i % 2, k = 8 * dims + lane_index() / 4,
              tile = lane_index() % 4 * 2 + 8 * half;
    float pair[2];
    load<2>(lambdas, state_slot(part, k, tile), ahead[part][half]);
    load<2>(h, state_slot(part, k, opposite(tile + 1)), pair);
    back[part][half][0] = pair[1];
    back[part][half][1] = pair[0];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Complex<float> before{back[0][i / 2][i % 2], back[1][i / 2][i % 2]};
    const Complex<float> after{ahead[0][i / 2][i % 2], ahead[1][i / 2][i % 2]};
    moments.carry[dims] = add(moments.carry[dims], multiply(before, after));
  }
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    add_moments<T>(moments.states[dims + 2 * part], dy, back[part]);
    add_moments<T>(moments.lambdas[dims + 2 * part], x, ahead[part]);
  }
}

// Tiles [first, first + 16) of the stage, for the channel of this warp.
template <class T>
MEGALODON_DEVICE void gather(const MomentArgs<T>& op, const Strand& strand, std::int64_t d,
                             const StateFactor<T>& factor, const StageTiles& tiles, int first,
                             const Shared<T>& x, const Shared<T>& dy, const Shared<float>& states,
                             Carrier& of, ChannelMoments& moments) {
  const int lane = lane_index(), row = stage_slot(warp_index(), first + lane % 16, lane / 16 * 8);
  std::uint32_t tokens[4], deep[4];
  warp_barrier();  // the states of the tiles before are read
  load_matrices<false>(dy, row, tokens);
  tile_ends<false, T>(tokens, factor, states);
  load_matrices<false>(x, row, tokens);
  tile_ends<true, T>(tokens, factor, states + kStateElements);
  warp_barrier();
  if (lane % kSystemDims < op.system.ndim) find_states(op, d, tiles, first, states, of);
  warp_barrier();
#pragma unroll 1
  for (int i = 0; op.initial && i < kTileTokens; ++i) {
    const int kind = tiles.kind[first + i], count = tokens_of(kind);
    if ((kind & kLeaves) == 0 || count == kTileTokens || lane >= op.system.ndim) continue;
    add_initial(op, strand, d, first, i, count, dy, states);
  }
  warp_barrier();
  const int column = stage_slot(warp_index(), first + lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8);
  load_matrices<true>(dy, column, tokens);
  load_matrices<true>(x, column, deep);
  multiply_add(T{}, moments.tokens[0], tokens, {deep[0], deep[2]});
  multiply_add(T{}, moments.tokens[1], tokens, {deep[1], deep[3]});
  const TokenParts<T> of_x = token_parts<T>(deep), of_dy = token_parts<T>(tokens);
#pragma unroll
  for (int dims = 0; dims < 2; ++dims) add_state_moments(moments, dims, of_x, of_dy, states);
}

// What lane j < 16 gets: sum of dy_t x_(t - j).
MEGALODON_DEVICE double lag_sum(const Shared<float>& tokens) {
  const int last = kTileTokens - 1 - lane_index() % kTileTokens;
  double sum = 0;
#pragma unroll 1
  for (int t = 0; t <= last; ++t) sum += tokens[(last - t) * kStatePitch + t];
  return sum;
}

// Of dim lane_index() % 16.
MEGALODON_DEVICE Complex<double> carry_sum(const ChannelMoments& moments) {
  Complex<double> sum[2];
  for (int dims = 0; dims < 2; ++dims) {
    double re = moments.carry[dims].re, im = moments.carry[dims].im;
    for (int step = 1; step < 4; step *= 2) {
      re += warp_shuffle(re, lane_index() ^ step);
      im += warp_shuffle(im, lane_index() ^ step);
    }
    sum[dims] = {warp_shuffle(re, lane_index() % 8 * 4), warp_shuffle(im, lane_index() % 8 * 4)};
  }
  return lane_index() / 8 % 2 == 0 ? sum[0] : sum[1];
}

// The gradients of a channel from its moments, through the entries of the matrices:
//   W = p q^(15 - s)     G = gamma q^(t + 1)     K = omega [j = 0] + sum_k Re(gamma_k p_k q_k^j)     a^16 =
//   q^16
template <class T>
MEGALODON_DEVICE void finish_channel(const MomentArgs<T>& op, const Strand& strand, std::int64_t d,
                                     const ChannelMoments& moments, const Shared<float>& states) {
  warp_barrier();
  store_sums<false>(states, 0, moments.tokens);
  warp_barrier();
  const double lags = lag_sum(states);
  const Complex<double> carry = carry_sum(moments);
  warp_barrier();
  store_sums<false>(states, 0, moments.lambdas);
  store_sums<false>(states + kStateElements, 0, moments.states);
  warp_barrier();
  const bool exists = lane_index() < op.system.ndim;
  const int k = exists ? lane_index() : 0;
  const auto dim = system_dim<double>(op.system, d, k);
  const std::int64_t i = d * op.system.ndim + k;
  const Complex<double> gamma{op.system.gamma[2 * i], -op.system.gamma[2 * i + 1]};
  double dp = 0;
  Complex<double> dq{}, dgamma{}, before{}, now{1, 0};  // conj(q)^(e - 1), conj(q)^e
#pragma unroll 1
  for (int e = 0; e < kTileTokens; ++e) {
    const int re = state_slot(0, k, kTileTokens - 1 - e), im = state_slot(1, k, kTileTokens - 1 - e);
    const double lag = warp_shuffle(lags, e);
    const Complex<double> output{states[kStateElements + re], states[kStateElements + im]};
    const Complex<double> input = add(Complex<double>{states[re], states[im]}, gamma, lag);
    const Complex<double> next = multiply(dim.a, now);
    dp += real_product(input, now);
    dgamma = add(add(dgamma, multiply(output, next)), now, dim.g.re * lag);
    dq = add(add(dq, multiply(gamma, multiply(output, now)), e + 1.0), multiply(input, before), dim.g.re * e);
    before = now;
    now = next;
  }
  dq = add(dq, multiply(before, carry), double{kTileTokens});
  const std::int64_t slot = sum_slot(op, strand, d, k);
  const auto accumulate = [&](const Global<float>& sums, Complex<double> value) {
    const auto initial = load_number<Complex<float>>(Global<const float>(sums), slot, op.system.dim);
    store_number(sums, slot, add(initial, narrow(value)), op.system.dim);
  };
  if (exists) {
    op.dp[(strand.index * op.system.ndim + k) * op.system.dim + d] = static_cast<float>(dp);
    accumulate(op.dq, dq);
    accumulate(op.dgamma, dgamma);
  }
  if (op.domega && lane_index() == 0) op.domega[strand.index * op.system.dim + d] = static_cast<float>(lags);
}

// The carrier of this lane: of lambda, or of h.
template <class T>
MEGALODON_DEVICE Carrier begin_channel(const MomentArgs<T>& op, const Strand& strand, std::int64_t d) {
  const int k = lane_index() % kSystemDims;
  Carrier of = carrier(op.system, d, k);
  if (lane_index() >= kSystemDims) {
    of.b = system_dim<float>(op.system, d, k).g;
  } else if (k < op.system.ndim) {
    const std::int64_t slot = sum_slot(op, strand, d, k);
    store_number(op.dq, slot, Complex<float>{}, op.system.dim);
    store_number(op.dgamma, slot, Complex<float>{}, op.system.dim);
  }
  return of;
}

template <bool kWide, class T>
MEGALODON_KERNEL MEGALODON_RESIDENT(kMomentThreads, 1) void cema_moments(MomentArgs<T> op) {
  SharedMemory memory;
  const Shared<T> x = memory.take<T>(kStageElements<kMomentChannels>),
                  dy = memory.take<T>(kStageElements<kMomentChannels>);
  const Shared<T> copied_x = memory.take<T>(kMomentChannels * kStageTokens),
                  copied_dy = memory.take<T>(kMomentChannels * kStageTokens);
  const Shared<float> states =
      memory.take<float>(2 * kMomentChannels * kStateElements) + warp_index() * 2 * kStateElements;
  const StageTiles tiles = take_tiles(memory);
  const std::int64_t dim = op.system.dim;
  const Strand strand = strand_of<kMomentChannels>(op.strands, dim);
  const std::int64_t d = strand.channel + warp_index(), last = stages_of(strand) - 1;
  const bool works = d < dim;
  const StateFactor<T> factor = works ? state_factor<T>(op.system, d) : StateFactor<T>{};
  Carrier of = works ? begin_channel(op, strand, d) : Carrier{};
  ChannelMoments moments{};
  const auto find = [&](std::int64_t i) { find_tiles(op.strands, strand, i, tiles_of(tiles, i)); };
  const auto copy = [&](std::int64_t i) {
    start_copy<kWide, kMomentChannels>(op.strands, strand, dim, tiles_of(tiles, i), op.x, copied_x);
    start_copy<kWide, kMomentChannels>(op.strands, strand, dim, tiles_of(tiles, i), op.dy, copied_dy);
    copies_commit();
  };
  const auto put = [&] {
    copies_wait<0>();
    put_share<kMomentChannels, true>(x, take_copied<kMomentChannels>(copied_x));
    put_share<kMomentChannels, false>(dy, take_copied<kMomentChannels>(copied_dy));
    block_barrier();
  };
  if (warp_index() < 2) find(last - warp_index());
  block_barrier();
  copy(last);
  put();
  for (std::int64_t i = last; i >= 0; --i) {
    copy(i - 1);
    if (warp_index() == 0) find(i - 2);
    for (int first = kStageTiles - kTileTokens; works && first >= 0; first -= kTileTokens) {
      const std::int64_t tile = i * kStageTiles + first;
      if (tile >= strand.tiles) continue;
      if (lane_index() < kSystemDims) of.h = load_carry(op.carries, strand, dim, d, tile);
      gather(op, strand, d, factor, tiles_of(tiles, i), first, x, dy, states, of, moments);
    }
    block_barrier();
    put();
  }
  if (works) finish_channel(op, strand, d, moments, states);
}

template <class T>
void gather_moments(Run& run, const MomentArgs<T>& args, bool wide) {
  const std::int64_t blocks = divide_up(args.system.dim, kMomentChannels) * args.strands.count;
  const std::int64_t shared = 2 * shared_size<T>(kStageElements<kMomentChannels>) +
                              2 * shared_size<T>(kMomentChannels * kStageTokens) +

                              shared_size<float>(2 * kMomentChannels * kStateElements) + kTilesSize;
  run.launch(wide ? cema_moments<true, T> : cema_moments<false, T>, {blocks}, kMomentThreads, shared, args);
}

}  // namespace megalodon::cuda
