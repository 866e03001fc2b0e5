// What a matrix product multiplies: numbers of the accumulation type, or bfloat16 in pairs where the CPU has
// an instruction for them.
//
// A lane of a vector holds a group: kGroup consecutive elements of depth, as many as fill the accumulation
// type. A pair of bfloat16 (a, b) times (c, d) adds a c + b d to a float. Such a product rounds to nearest,
// and takes numbers below 2^-126 for 0, as operands and as sums.
#pragma once

#include "cpu/kernels/simd.h"

namespace megalodon::cpu::MEGALODON_TARGET {

template <class P>
inline constexpr int kGroup = static_cast<int>(sizeof(Acc<P>) / sizeof(P));

template <class P>
struct Operand {
  static Vec<P> load_groups(const P* from) { return load(from); }
  static void store_groups(P* to, Vec<P> groups) { store(to, groups); }
  static Vec<P> broadcast_group(const P* from) { return splat(*from); }
  // sum + a b
  static Vec<P> multiply_add(Vec<P> sum, Vec<P> a, Vec<P> b) { return sum + a * b; }
  // The groups with all elements but one set to 0.
  static Vec<P> only(Vec<P> groups, std::int64_t) { return groups; }
  // Groups of 0 but for one element, which is rounded.
  static Vec<P> spread(Vec<P> value, std::int64_t) { return value; }
  // Groups of which each element is 0 in a or b.
  static Vec<P> merge(Vec<P>, Vec<P> b) { return b; }
  static Vec<P> group(const Vec<P> (&elements)[1]) { return elements[0]; }
  static void store_rounded(P* to, Vec<P> value) { store(to, value); }
};

#if defined(__AVX512BF16__)
inline constexpr bool kBfloat16Products = true;

template <>
struct Operand<bfloat16> {
  static VecF load_groups(const bfloat16* from) { return load_bits<VecF>(from); }
  static void store_groups(bfloat16* to, VecF groups) { std::memcpy(to, &groups, sizeof(groups)); }
  static VecF broadcast_group(const bfloat16* from) {
    return bit_cast<VecF>(Words{} + load_bits<std::uint32_t>(from));
  }
  static VecF multiply_add(VecF sum, VecF a, VecF b) {
    return bit_cast<VecF>(
        _mm512_dpbf16_ps(bit_cast<__m512>(sum), bit_cast<__m512bh>(a), bit_cast<__m512bh>(b)));
  }
  static VecF only(VecF groups, std::int64_t element) {
    return bit_cast<VecF>(bit_cast<Words>(groups) & (0xffffu << 16 * element));
  }
  static VecF spread(VecF value, std::int64_t element) {
    return bit_cast<VecF>(__builtin_convertvector(rounded(value), Words) << 16 * element);
  }
  static VecF merge(VecF a, VecF b) { return bit_cast<VecF>(bit_cast<Words>(a) | bit_cast<Words>(b)); }
  static VecF group(const VecF (&elements)[2]) {
    const auto halves =
        bit_cast<Pairs>(_mm512_cvtne2ps_pbh(bit_cast<__m512>(elements[1]), bit_cast<__m512>(elements[0])));
    return bit_cast<VecF>(interleaved(halves, std::make_integer_sequence<int, 2 * kLanes<float>>{}));
  }
  static void store_rounded(bfloat16* to, VecF value) {
    const Halfs bits = rounded(value);
    std::memcpy(to, &bits, sizeof(bits));
  }

 private:
  typedef std::uint16_t Pairs __attribute__((vector_size(kVectorBytes)));

  static Halfs rounded(VecF value) { return bit_cast<Halfs>(_mm512_cvtneps_pbh(bit_cast<__m512>(value))); }

  template <int... i>
  static Pairs interleaved(Pairs halves, std::integer_sequence<int, i...>) {
    return __builtin_shufflevector(halves, halves, (i / 2 + i % 2 * kLanes<float>)...);
  }
};
#else
inline constexpr bool kBfloat16Products = false;
#endif

// Runs f with a null pointer of the type in which products of the given activations are taken.
template <class F>
inline void with_operand(DType activation, F&& f) {
  if (activation == DType::float64) return f(static_cast<double*>(nullptr));
  if constexpr (kBfloat16Products) {
    if (activation == DType::bfloat16) return f(static_cast<bfloat16*>(nullptr));
  }
  f(static_cast<float*>(nullptr));
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
