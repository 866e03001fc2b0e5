// Transcendental functions of one vector. Errors in units in the last place, subnormal results included:
// exp 1.1, sigmoid 2.5, sin and cos 1.5. What a 16-bit type will round anyway is had cheaper: sigmoid_for.
#pragma once

#include <type_traits>

#include "cpu/kernels/simd.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// e^x = 2^n e^r with n = round(x / ln 2) and |r| <= ln(2) / 2, for x <= 0. What the two types differ in:
template <class A>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float lowest = -104.0f;   // e^lowest rounds to 0
  static constexpr float round = 0x1.8p23f;  // adding it leaves the integer part in the low mantissa bits
  static constexpr float log2_e = 0x1.715476p+0f;
  static constexpr float ln2_high = 0x1.63p-1f;  // short, so that n * ln2_high is exact
  static constexpr float ln2_low = -0x1.bd0106p-13f;
  static constexpr int mantissa_bits = 23;
  static constexpr int exponent_bias = 127;
};

template <>
struct ExpConstants<double> {
  static constexpr double lowest = -746.0;
  static constexpr double round = 0x1.8p52;
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  static constexpr double ln2_high = 0x1.62e42fee00000p-1;
  static constexpr double ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr int mantissa_bits = 52;
  static constexpr int exponent_bias = 1023;
};

// (e^r - 1 - r) / r^2 by its Taylor series, whose remainder at ln(2) / 2 is below an eighth of a last place.
inline VecF exp_tail(VecF r) {
  VecF p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  return p * r + 0.5f;
}

inline VecD exp_tail(VecD r) {
  VecD p = splat(1.0 / 6227020800);
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  return p * r + 0.5;
}

// value 2^n with n = shifted - C::round. Bits is the signed integer vector with lanes of A's size.
#if defined(__AVX512F__)
template <class Bits>
inline VecF scale_exp(VecF value, VecF, VecF n) {
  return bit_cast<VecF>(_mm512_maskz_scalef_ps(0xffff, bit_cast<__m512>(value), bit_cast<__m512>(n)));
}
template <class Bits>
inline VecD scale_exp(VecD value, VecD, VecD n) {
  return bit_cast<VecD>(_mm512_maskz_scalef_pd(0xff, bit_cast<__m512d>(value), bit_cast<__m512d>(n)));
}
#else
// By 2^(n + 64), which is a normal number where 2^n is none, and 2^-64. The last bits of `shifted` are those
// of n; what else it has is shifted out.
template <class Bits, class V>
inline V scale_exp(V value, V shifted, V) {
  using A = std::remove_reference_t<decltype(value[0])>;
  using C = ExpConstants<A>;
  const Bits exponent = (bit_cast<Bits>(shifted) + (C::exponent_bias + 64)) << C::mantissa_bits;
  return value * bit_cast<V>(exponent) * A(0x1p-64);
}
#endif

template <class A, class Bits>
inline Vec<A> exp_as(Vec<A> x) {
  using C = ExpConstants<A>;
  x = max(splat(C::lowest), x);  // in this order it keeps a NaN
  const Vec<A> shifted = x * C::log2_e + C::round;
  const Vec<A> n = shifted - C::round;
  const Vec<A> r = (x - n * C::ln2_high) - n * C::ln2_low;
  const Vec<A> e = (exp_tail(r) * (r * r) + r) + A(1);
  return scale_exp<Bits>(e, shifted, n);
}

// For x <= 0, or little more: 0 at -inf, NaN at NaN.
inline VecF exp(VecF x) { return exp_as<float, VecI>(x); }
inline VecD exp(VecD x) { return exp_as<double, VecL>(x); }

// 2^t for t <= 0 with a relative error of 2^-18.5, and what rounding t adds to it: 2^-17.3 at t = -126.
// The polynomial is the one of degree 4 with the least relative error on [0, 1], where t - floor(t) lies.
inline VecF coarse_exp2(VecF t) {
  const auto polynomial = [](VecF r) {
    VecF p = splat(0x1.bb7cd4p-7f);
    p = p * r + 0x1.aa13f0p-5f;
    p = p * r + 0x1.ee798ap-3f;
    p = p * r + 0x1.62d166p-1f;
    return p * r + 0x1.00002cp+0f;
  };
#if defined(__AVX512DQ__)
  constexpr int kDown = _MM_FROUND_TO_NEG_INF;
  const VecF r = bit_cast<VecF>(_mm512_maskz_reduce_ps(0xffff, bit_cast<__m512>(t), kDown));
  return scale_exp<VecI>(polynomial(r), t, t);  // it takes the floor of its exponent
#else
  using C = ExpConstants<float>;
  t = max(splat(C::lowest * C::log2_e), t);
  const VecF shifted = (t - 0.5f) + C::round;
  const VecF n = shifted - C::round;
  return scale_exp<VecI>(polynomial(t - n), shifted, n);
#endif
}

// -|x|, by its bits.
template <class V>
inline V minus_magnitude(V x) {
  using A = std::remove_reference_t<decltype(x[0])>;
  return bit_cast<V>(bit_cast<VecL>(x) | bit_cast<VecL>(splat(-A{})));
}

// a / b for b of [1, 2].
inline VecF quotient(VecF a, VecF b) {
#if defined(__AVX512F__)
  // 14 bits of 1 / b, and one step of Newton's for the others: a division takes as long as ten products.
  const VecF r = bit_cast<VecF>(_mm512_maskz_rcp14_ps(0xffff, bit_cast<__m512>(b)));
  return a * (r + r * (1.0f - b * r));
#else
  return a / b;
#endif
}
inline VecD quotient(VecD a, VecD b) { return a / b; }

// 1 / (1 + e^-x) given e = e^-|x|, accurate in both tails.
template <class V>
inline V sigmoid_by(V x, V e) {
  const V zero = {};
  return quotient(x < zero ? e : zero + 1, e + 1);
}

// 1 / (1 + e^-x)
template <class V>
inline V sigmoid(V x) {
  return sigmoid_by(x, exp(minus_magnitude(x)));
}

// The same, as exact as an array of T can tell.
template <class T>
inline Vec<Acc<T>> sigmoid_for(Vec<Acc<T>> x) {
  if constexpr (sizeof(T) == 2) {
    return sigmoid_by(x, coarse_exp2(minus_magnitude(x) * ExpConstants<float>::log2_e));
  } else {
    return sigmoid(x);
  }
}

// sin(x) and cos(x) by their Taylor series at x - n pi / 2, |.| <= pi / 4. Meant for angles below 1e6; n pi /
// 2 is exact up to there, and above it errs by less than the rounding of x itself.
inline void sin_cos(VecD x, VecD& sine, VecD& cosine) {
  constexpr double round = ExpConstants<double>::round;
  const VecD shifted = x * 0x1.45f306dc9c883p-1 + round;
  const VecD n = shifted - round;
  // pi / 2 in three parts, the first two of 33 bits.
  VecD r = x - n * 0x1.921fb54400000p+0;
  r = r - n * 0x1.0b4611a600000p-34;
  r = r - n * 0x1.3198a2e037073p-69;
  const VecD square = r * r;
  VecD s = splat(-1.0 / 1307674368000);
  s = s * square + 1.0 / 6227020800;
  s = s * square - 1.0 / 39916800;
  s = s * square + 1.0 / 362880;
  s = s * square - 1.0 / 5040;
  s = s * square + 1.0 / 120;
  s = s * square - 1.0 / 6;
  s = s * square * r + r;
  VecD c = splat(1.0 / 20922789888000);
  c = c * square - 1.0 / 87178291200;
  c = c * square + 1.0 / 479001600;
  c = c * square - 1.0 / 3628800;
  c = c * square + 1.0 / 40320;
  c = c * square - 1.0 / 720;
  c = c * square + 1.0 / 24;
  c = c * square * square + (1 - 0.5 * square);
  const VecL quarter = bit_cast<VecL>(shifted);
  const VecL swapped = (quarter & 1) != 0;
  const VecD first = swapped ? c : s, second = swapped ? s : c;
  sine = (quarter & 2) != 0 ? -first : first;
  cosine = ((quarter + 1) & 2) != 0 ? -second : second;
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
