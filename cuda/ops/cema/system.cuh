// One channel of the moving average as a linear system over its tokens, h being the state before a token:
//
//   h' = a h + b x        y = sum_k Re(g_k h_k) + direct x
//
// with a = q, b = p, g = gamma q, direct = omega + sum_k Re(gamma_k p_k). Its adjoint, which takes dy from
// the last token to the first and gives dx, swaps input and output: a = conj q, b = conj(gamma q), g = p.
//
// Over a tile of 16 tokens that is three products with small matrices, whatever tiles stand side by side:
//
//   h after = a^16 h + b W x     W(k, s) = a_k^(15 - s)
//   y       = K x + G h          K(t, s) = direct, or sum_k Re(g_k b_k a_k^(t - s - 1))     G(t, k) = g_k
//   a_k^t
//
// Entries are computed in double and split into parts of 16 bits. W makes states, which are as precise as
// float: 3 parts of bfloat16 (24 bits), or 2 of float16 (22 bits; no power exceeds 1). K and G make y, which
// is rounded to 16 bits: 2 parts, K scaled into float16's range. G multiplies states, whose range only
// bfloat16 has.
#pragma once

#include "ops/cema/scan.cuh"

namespace megalodon::cuda {

inline constexpr int kTileTokens = 16;
inline constexpr int kSystemDims = 16;  // at most, absent ones are 0

template <class T>
inline constexpr int kStateParts = std::is_same_v<T, BFloat16> ? 3 : 2;

struct SystemArgs {
  Global<const float> p, q, gamma, omega;
  std::int64_t dim, ndim;
  bool adjoint;
};

template <class A>
struct SystemDim {
  Complex<A> a, b, g;
  A direct;  // its part of `direct`
};

template <class A>
MEGALODON_DEVICE SystemDim<A> system_dim(const SystemArgs& op, std::int64_t d, int k) {
  if (k >= op.ndim) return {};
  const std::int64_t i = d * op.ndim + k;
  const Complex<A> q{op.q[2 * i], op.q[2 * i + 1]}, gamma{op.gamma[2 * i], op.gamma[2 * i + 1]};
  const Complex<A> p{op.p[i], 0}, out = multiply(gamma, q);
  const A direct = real_product(gamma, p);
  if (op.adjoint) return {conj(q), conj(out), p, direct};
  return {q, p, out, direct};
}

// A power of two that brings what is at most `largest` close to 2^14 where T is float16.
template <class T>
MEGALODON_DEVICE float scale_of(double largest) {
  if constexpr (std::is_same_v<T, BFloat16>) return 1;
  int exponent = 0;
  std::frexp(largest, &exponent);
  return std::ldexp(1.0f, largest > 0 ? 14 - exponent : 0);
}

// `first` and `second` as sums of kParts numbers of T; a register holds a part of both.
template <class T, int kParts>
MEGALODON_DEVICE void split(float first, float second, std::uint32_t (&parts)[kParts]) {
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    parts[i] = write_pair<T>(first, second);
    first -= read_first<T>(parts[i]);
    second -= read_second<T>(parts[i]);
  }
}

// The right factor of a product with kColumns columns and a depth of kDepths, as fragments of its parts.
template <int kParts, int kDepths, int kColumns>
struct Factor {
  std::uint32_t part[kParts][kDepths / 16][kColumns / 8][2];
};

// Entries of depth 16 k + 8 half + 2 (lane % 4) and of the next, in column 8 j + lane / 4.
template <class T, int kParts, int kDepths, int kColumns>
MEGALODON_DEVICE void set_entries(Factor<kParts, kDepths, kColumns>& factor, int k, int j, int half,
                                  double first, double second) {
  std::uint32_t parts[kParts];
  split<T>(static_cast<float>(first), static_cast<float>(second), parts);
#pragma unroll
  for (int i = 0; i < kParts; ++i) factor.part[i][k][j][half] = parts[i];
}

// W^T: a row for each token; columns are the real parts of all dims, then the imaginary ones.
template <class T>
using StateFactor = Factor<kStateParts<T>, kTileTokens, 2 * kSystemDims>;

template <class T>
MEGALODON_DEVICE StateFactor<T> state_factor(const SystemArgs& op, std::int64_t d) {
  StateFactor<T> factor;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int dims = i / 2, half = i % 2, s = lane_index() % 4 * 2 + 8 * half,
              k = 8 * dims + lane_index() / 4;
    const Complex<double> a = system_dim<double>(op, d, k).a;
    const Complex<double> second = k < op.ndim ? power(a, 14 - s) : Complex<double>{},
                          first = multiply(second, a);
    set_entries<T>(factor, 0, dims, half, first.re, second.re);
    set_entries<T>(factor, 0, dims + 2, half, first.im, second.im);
  }
  return factor;
}

// K^T times `scale`.
template <class T>
struct DirectFactor {
  Factor<2, kTileTokens, kTileTokens> factor;
  float unscale;
};

template <class T>
MEGALODON_DEVICE DirectFactor<T> direct_factor(const SystemArgs& op, std::int64_t d) {
  const int lane = lane_index();
  double kappa = lane == 0 && op.omega ? op.omega[d] : 0.0;  // lane j < 16 holds that of j tokens later
  for (int k = 0; k < op.ndim; ++k) {
    const auto dim = system_dim<double>(op, d, k);
    kappa += lane == 0 ? dim.direct : real_product(multiply(dim.g, dim.b), power(dim.a, lane - 1));
  }
  double largest = 0;
  for (int j = 0; j < kTileTokens; ++j) largest = std::fmax(largest, std::fabs(warp_shuffle(kappa, j)));
  const float scale = scale_of<T>(largest);
  DirectFactor<T> direct{};
  direct.unscale = 1 / scale;
  const auto entry = [&](int lag) {
    const double value = warp_shuffle(kappa, lag < 0 ? 0 : lag);
    return lag < 0 ? 0.0 : scale * value;
  };
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int j = i / 2, half = i % 2;
    if (half > j) continue;  // from tokens to earlier ones
    const int lag = 8 * j + lane / 4 - (8 * half + lane % 4 * 2);
    const double first = entry(lag), second = entry(lag - 1);
    set_entries<T>(direct.factor, 0, j, half, first, second);
  }
  return direct;
}

// G^T, in the order of W's columns: what the real and the imaginary part of a dim before the tile give to y.
using OutputFactor = Factor<2, 2 * kSystemDims, kTileTokens>;

MEGALODON_DEVICE OutputFactor output_factor(const SystemArgs& op, std::int64_t d) {
  OutputFactor factor;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int j = i / 2, half = i % 2, t = 8 * j + lane_index() / 4, k = 8 * half + lane_index() % 4 * 2;
    const auto one = system_dim<double>(op, d, k), next = system_dim<double>(op, d, k + 1);
    const Complex<double> first = multiply(one.g, power(one.a, t)),
                          second = multiply(next.g, power(next.a, t));
    set_entries<BFloat16>(factor, 0, j, half, first.re, second.re);
    set_entries<BFloat16>(factor, 1, j, half, -first.im, -second.im);
  }
  return factor;
}

}  // namespace megalodon::cuda
