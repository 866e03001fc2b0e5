// The states that 16 tiles of a channel start with, tile after tile of a strand: what each tile alone ends
// with comes from a product of matrices, and the lanes of a warp, one for each dim, carry the states along.
#pragma once

#include "common/warp_product.cuh"
#include "ops/cema/stage.cuh"

namespace megalodon::cuda {

inline constexpr int kStatePitch = 2 * kSystemDims + 8;
inline constexpr int kStateElements =
    kTileTokens * kStatePitch;  // of 16 tiles: (tile, real and imaginary parts)

MEGALODON_DEVICE int state_slot(int tile, int part, int k) {
  return tile * kStatePitch + part * kSystemDims + k;
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

// What each tile ends with if it starts from 0, times state_scale.
template <class T>
MEGALODON_DEVICE void tile_ends(const std::uint32_t (&x)[4], const StateFactor<T>& factor,
                                const Shared<float>& states) {
  float sums[4][4] = {};
  add_product<T>(sums, x, factor);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      const float pair[2] = {sums[j][e], sums[j][e + 1]};
      store<2>(states, sum_row(e) * kStatePitch + 8 * j + sum_column(e), pair);
    }
  }
}

MEGALODON_DEVICE Complex<float> narrow(Complex<double> z) {
  return {static_cast<float>(z.re), static_cast<float>(z.im)};
}

// Of dim lane_index(): the state that goes from tile to tile, and a^16. That has a second part, its rounding,
// which would add up over many tiles.
struct Carrier {
  Complex<float> whole, rest, h;
  float unscale;
};

template <class T>
MEGALODON_DEVICE Carrier carrier(const SystemArgs& op, std::int64_t d) {
  const SystemDim dim = system_dim(op, d, lane_index());
  const Complex<double> whole = power(dim.a, kTileTokens);
  const Complex<float> first = narrow(whole);
  return {first, narrow({whole.re - first.re, whole.im - first.im}), {}, 1 / state_scale<T>(dim)};
}

// What a whole tile makes of the state.
MEGALODON_DEVICE Complex<float> carried(const Carrier& of, Complex<float> end) {
  const Complex<float> sum = add(multiply(of.rest, of.h), end, of.unscale);
  return {sum.re + of.whole.re * of.h.re - of.whole.im * of.h.im,
          sum.im + of.whole.re * of.h.im + of.whole.im * of.h.re};
}

MEGALODON_DEVICE Complex<float> load_state(const Global<const float>& states, std::int64_t i) {
  return states ? load_number<Complex<float>>(states, 2 * i) : Complex<float>{};
}

}  // namespace megalodon::cuda
