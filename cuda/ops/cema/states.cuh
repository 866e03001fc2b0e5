// The states that 16 tiles of a channel start with, tile after tile of a strand: what each tile alone ends
// with comes from a product of matrices, and the lanes of a warp, one for each dim, carry the states along.
#pragma once

#include "common/warp_product.cuh"
#include "ops/cema/stage.cuh"

namespace megalodon::cuda {

inline constexpr int kStatePitch = kTileTokens + 4;  // a line of 16 tiles, eight of them in different banks
inline constexpr int kStateElements = 2 * kSystemDims * kStatePitch;

// Real (part 0) or imaginary part of dim k, of a tile.
MEGALODON_DEVICE int state_slot(int part, int k, int tile) {
  return (part * kSystemDims + k) * kStatePitch + tile;
}

// sums (16 tiles, columns) += x factor, for x with a fragment.
template <class T, int kParts, int kColumns>
MEGALODON_DEVICE void add_product(float (&sums)[kColumns / 8][4], const std::uint32_t (&x)[4],
                                  const Factor<kParts, 16, kColumns>& factor) {
#pragma unroll
  for (int i = kParts - 1; i >= 0; --i) {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) multiply_add(T{}, sums[j], x, factor.part[i][0][j]);
  }
}

// Lines are columns of the sums; kOpposite: their rows in the opposite order.
template <bool kOpposite, int kColumns>
MEGALODON_DEVICE void store_sums(const Shared<float>& to, int column, const float (&sums)[kColumns][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kColumns; ++i) {
    const int row = kOpposite ? opposite(sum_row(i % 4)) : sum_row(i % 4);
    to[(column + i / 4 * 8 + sum_column(i % 4)) * kStatePitch + row] = sums[i / 4][i % 4];
  }
}

// W x of each tile.
template <bool kOpposite, class T>
MEGALODON_DEVICE void tile_ends(const std::uint32_t (&x)[4], const StateFactor<T>& factor,
                                const Shared<float>& states) {
  float sums[4][4] = {};
  add_product<T>(sums, x, factor);
  store_sums<kOpposite>(states, 0, sums);
}

MEGALODON_DEVICE Complex<float> narrow(Complex<double> z) {
  return {static_cast<float>(z.re), static_cast<float>(z.im)};
}

// Of one dim: the state that goes from tile to tile, b, and a^16. That has a second part, its rounding, which
// would add up over many tiles.
struct Carrier {
  Complex<float> whole, rest, b, h;
};

MEGALODON_DEVICE Carrier carrier(const SystemArgs& op, std::int64_t d, int k) {
  const auto dim = system_dim<double>(op, d, k);
  const Complex<double> whole = power(dim.a, kTileTokens);
  const Complex<float> first = narrow(whole);
  return {first, narrow({whole.re - first.re, whole.im - first.im}), narrow(dim.b), {}};
}

// The state after a whole tile, `end` being its W x.
MEGALODON_DEVICE Complex<float> carried(const Carrier& of, Complex<float> end) {
  return add(multiply(of.whole, of.h), add(multiply(of.rest, of.h), multiply(of.b, end)));
}

// Four whole tiles inside a sequence.
MEGALODON_DEVICE void carry_four(const Shared<float>& states, int re, int im, Carrier& of) {
  float real[4], imaginary[4];
  load<4>(Shared<const float>(states), re, real);
  load<4>(Shared<const float>(states), im, imaginary);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Complex<float> end{real[i], imaginary[i]};
    real[i] = of.h.re;
    imaginary[i] = of.h.im;
    of.h = carried(of, end);
  }
  store<4>(states, re, real);
  store<4>(states, im, imaginary);
}

// Makes W x of 16 tiles to the states that they start with, for dim k. start(i) is what a sequence starts
// with; rest(i, tokens, end) the state after a tile that is not whole; finish(i) takes what a sequence ends
// with.
template <class Start, class Rest, class Finish>
MEGALODON_DEVICE void carry_along(const Shared<int>& kinds, const Shared<float>& states, int k, Carrier& of,
                                  const Start& start, const Rest& rest, const Finish& finish) {
#pragma unroll 1
  for (int first = 0; first < kTileTokens; first += 4) {
    const Pack<int, 4> kind = *reinterpret_cast<const Pack<int, 4>*>(address(kinds, first, 4));
    const int re = state_slot(0, k, first), im = state_slot(1, k, first);
    if (kind.element[0] == kTileTokens && kind.element[1] == kTileTokens && kind.element[2] == kTileTokens &&
        kind.element[3] == kTileTokens) {
      carry_four(states, re, im, of);
      continue;
    }
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
      const int tokens = tokens_of(kinds[first + i]);
      if (kinds[first + i] & kEnters) of.h = start(first + i);
      const Complex<float> end{states[re + i], states[im + i]};
      states[re + i] = of.h.re;
      states[im + i] = of.h.im;
      of.h = tokens == kTileTokens ? carried(of, end) : rest(first + i, tokens, end);
      if (kinds[first + i] & kLeaves) finish(first + i);
    }
  }
}

MEGALODON_DEVICE Complex<float> load_state(const Global<const float>& states, std::int64_t i) {
  return states ? load_number<Complex<float>>(states, 2 * i) : Complex<float>{};
}

}  // namespace megalodon::cuda
