// A vector of lanes as wide as the target's registers, and how each element type is loaded, stored and
// widened.
//
// Everything here lives in the target's namespace: the same inline function compiled for two instruction sets
// must stay two functions, or the linker would hand AVX-512 code to baseline callers.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/kernels.h"
#include "megalodon/storage.h"

namespace megalodon::cpu::MEGALODON_TARGET {

#define MEGALODON_STRING_(x) #x
#define MEGALODON_STRING(x) MEGALODON_STRING_(x)
inline constexpr const char* kIsa = MEGALODON_STRING(MEGALODON_TARGET);
#undef MEGALODON_STRING
#undef MEGALODON_STRING_
inline constexpr int kVectorBytes = MEGALODON_VECTOR_BYTES;
inline constexpr int kRegisters = MEGALODON_REGISTERS;

template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// Lanes of accumulation type A (float or double). GNU vector extensions: + - * / and comparisons work per
// lane, a scalar operand is broadcast, and `mask ? a : b` selects per lane.
template <class A>
struct VecOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vec = typename VecOf<A>::type;

using VecF = Vec<float>;
using VecD = Vec<double>;
using VecI = Vec<std::int32_t>;
using VecL = Vec<std::int64_t>;

// As many 16-bit lanes as a float vector has.
typedef std::uint16_t Halfs __attribute__((vector_size(kVectorBytes / 2)));
typedef std::uint32_t Words __attribute__((vector_size(kVectorBytes)));

struct bfloat16 {
  std::uint16_t bits;
};
struct float16 {
  std::uint16_t bits;
};

// The accumulation type of a storage type.
template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
using Acc = typename AccOf<T>::type;

template <class A>
inline Vec<A> splat(A value) {
  return value - Vec<A>{};  // unlike a sum with 0, this keeps -0 and folds to a broadcast
}

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// The larger and the smaller one, b where either is NaN.
template <class V>
inline V max(V a, V b) {
  return a > b ? a : b;
}
template <class V>
inline V min(V a, V b) {
  return a < b ? a : b;
}
// By instruction, which compilers miss where `a` is a constant.
#if defined(__AVX512F__)
inline VecF max(VecF a, VecF b) {
  return bit_cast<VecF>(_mm512_maskz_max_ps(0xffff, bit_cast<__m512>(a), bit_cast<__m512>(b)));
}
inline VecF min(VecF a, VecF b) {
  return bit_cast<VecF>(_mm512_maskz_min_ps(0xffff, bit_cast<__m512>(a), bit_cast<__m512>(b)));
}
#elif defined(__AVX2__)
inline VecF max(VecF a, VecF b) {
  return bit_cast<VecF>(_mm256_max_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
}
inline VecF min(VecF a, VecF b) {
  return bit_cast<VecF>(_mm256_min_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
}
#endif

// ---- conversions ----

// Each lane zero-extended, and each lane's low half: compilers split these over half vectors.
inline Words widen_halfs(Halfs bits) {
#if defined(__AVX512F__)
  return bit_cast<Words>(_mm512_maskz_cvtepu16_epi32(0xffff, bit_cast<__m256i>(bits)));
#elif defined(__AVX2__)
  return bit_cast<Words>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(bits)));
#else
  return __builtin_convertvector(bits, Words);
#endif
}

// Of words below 2^16.
inline Halfs narrow_words(Words words) {
#if defined(__AVX512F__)
  return bit_cast<Halfs>(_mm512_maskz_cvtepi32_epi16(0xffff, bit_cast<__m512i>(words)));
#elif defined(__AVX2__)
  const __m256i wide = bit_cast<__m256i>(words);
  return bit_cast<Halfs>(_mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
#else
  return __builtin_convertvector(words, Halfs);
#endif
}

inline VecF widen_bfloat16(Halfs bits) {
#if defined(__AVX512BW__)
  // One permutation instead of widening and shifting: half i moves to the upper half of word i.
  constexpr std::uint32_t kUpperHalfs = 0xaaaaaaaa;
  constexpr Words words = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const __m512i half = bit_cast<__m512i>(words << 16);
  const __m512i source = _mm512_castsi256_si512(bit_cast<__m256i>(bits));
  return bit_cast<VecF>(_mm512_maskz_permutexvar_epi16(kUpperHalfs, half, source));
#else
  return bit_cast<VecF>(widen_halfs(bits) << 16);
#endif
}

// Round to nearest even; NaN becomes the one of all bits.
inline Halfs narrow_bfloat16(VecF value) {
#if defined(__AVX512BF16__)
  // The instruction takes subnormal numbers for 0.
  constexpr int kSubnormal = 0x20;
  if (_mm512_fpclass_ps_mask(bit_cast<__m512>(value), kSubnormal) == 0) [[likely]] {
    return bit_cast<Halfs>(_mm512_cvtneps_pbh(bit_cast<__m512>(value)));
  }
#endif
  const Words bits = bit_cast<Words>(value);
  const Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return narrow_words((rounded | bit_cast<Words>(value != value)) >> 16);
}

#if defined(__F16C__)
inline VecF widen_float16(Halfs bits) {
#if defined(__AVX512F__)
  return bit_cast<VecF>(_mm512_maskz_cvtph_ps(0xffff, bit_cast<__m256i>(bits)));
#else
  return bit_cast<VecF>(_mm256_cvtph_ps(bit_cast<__m128i>(bits)));
#endif
}

inline Halfs narrow_float16(VecF value) {
#if defined(__AVX512F__)
  return bit_cast<Halfs>(
      _mm512_maskz_cvtps_ph(0xffff, bit_cast<__m512>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  return bit_cast<Halfs>(
      _mm256_cvtps_ph(bit_cast<__m256>(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
}
#else
// Scaling by a power of two rebiases the exponent, subnormals included: 2^112 = 2^(127 - 15).
inline VecF widen_float16(Halfs bits) {
  const Words h = __builtin_convertvector(bits, Words);
  const Words sign = (h & 0x8000u) << 16;
  const Words magnitude = (h & 0x7fffu) << 13;
  const VecF scaled = bit_cast<VecF>(magnitude) * 0x1p112f;
  const Words special = magnitude | 0x7f800000u;  // infinity and NaN keep their mantissa
  return bit_cast<VecF>(((h & 0x7c00u) == 0x7c00u ? special : bit_cast<Words>(scaled)) | sign);
}

// Round to nearest even. Adding a power of two whose last place is the result's lets the adder round
// subnormals; normal numbers round on their bits.
inline Halfs narrow_float16(VecF value) {
  const Words bits = bit_cast<Words>(value);
  const Words sign = (bits >> 16) & 0x8000u;
  const Words magnitude = bits & 0x7fffffffu;
  const Words normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const VecF half = splat(0.5f);
  const Words subnormal = bit_cast<Words>(bit_cast<VecF>(magnitude) + half) - bit_cast<Words>(half);
  const Words overflow = magnitude > 0x7f800000u ? Words{} + 0x7e00u : Words{} + 0x7c00u;
  const Words finite = magnitude < 0x38800000u ? subnormal : normal;
  return __builtin_convertvector((magnitude >= 0x477ff000u ? overflow : finite) | sign, Halfs);
}
#endif

// ---- loads and stores of one vector of Acc<T> ----

template <class V, class T>
inline V load_bits(const T* from) {
  V to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}

inline VecF load(const float* from) { return load_bits<VecF>(from); }
inline VecD load(const double* from) { return load_bits<VecD>(from); }
inline VecF load(const bfloat16* from) { return widen_bfloat16(load_bits<Halfs>(from)); }
inline VecF load(const float16* from) { return widen_float16(load_bits<Halfs>(from)); }

inline void store(float* to, VecF value) { std::memcpy(to, &value, sizeof(value)); }
inline void store(double* to, VecD value) { std::memcpy(to, &value, sizeof(value)); }
inline void store(bfloat16* to, VecF value) {
  const Halfs bits = narrow_bfloat16(value);
  std::memcpy(to, &bits, sizeof(bits));
}
inline void store(float16* to, VecF value) {
  const Halfs bits = narrow_float16(value);
  std::memcpy(to, &bits, sizeof(bits));
}

// The same past the caches, where the machine can: `to` is aligned to what is written, and other threads see
// it after finish_streams().
#if defined(__x86_64__)
inline constexpr bool kCanStream = true;
#else
inline constexpr bool kCanStream = false;
#endif

template <class V>
inline void stream_bits(void* to, V bits) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) {
    return _mm512_stream_si512(static_cast<__m512i*>(to), bit_cast<__m512i>(bits));
  }
#endif
#if defined(__AVX__)
  if constexpr (sizeof(V) == 32) {
    return _mm256_stream_si256(static_cast<__m256i*>(to), bit_cast<__m256i>(bits));
  }
#endif
#if defined(__x86_64__)
  if constexpr (sizeof(V) == 16) return _mm_stream_si128(static_cast<__m128i*>(to), bit_cast<__m128i>(bits));
  if constexpr (sizeof(V) == 8)
    return _mm_stream_si64(static_cast<long long*>(to), bit_cast<long long>(bits));
#endif
  std::memcpy(to, &bits, sizeof(bits));
}

inline void stream(float* to, VecF value) { stream_bits(to, value); }
inline void stream(double* to, VecD value) { stream_bits(to, value); }
inline void stream(bfloat16* to, VecF value) { stream_bits(to, narrow_bfloat16(value)); }
inline void stream(float16* to, VecF value) { stream_bits(to, narrow_float16(value)); }

inline void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// The first `count` lanes; the others are 0, and memory past `count` is not touched.
template <class T>
inline Vec<Acc<T>> load_partial(const T* from, std::int64_t count) {
  T buffer[kLanes<Acc<T>>] = {};
  std::memcpy(buffer, from, static_cast<std::size_t>(count) * sizeof(T));
  return load(buffer);
}

template <class T>
inline void store_partial(T* to, Vec<Acc<T>> value, std::int64_t count) {
  T buffer[kLanes<Acc<T>>];
  store(buffer, value);
  std::memcpy(to, buffer, static_cast<std::size_t>(count) * sizeof(T));
}

// One element, rounded as a vector store rounds it.
template <class T>
inline Acc<T> load_one(const T* from) {
  return load_partial(from, 1)[0];
}
inline float load_one(const float* from) { return *from; }
inline double load_one(const double* from) { return *from; }

template <class T>
inline void store_one(T* to, Acc<T> value) {
  store_partial(to, splat(value), 1);
}
inline void store_one(float* to, float value) { *to = value; }
inline void store_one(double* to, double value) { *to = value; }

// ---- reductions over lanes, in a fixed tree order ----

// Lane i of the result is lane i + kBy, around the end.
template <int kBy, class V, int... i>
inline V rotate_lanes(V value, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(value, value, ((i + kBy) % static_cast<int>(sizeof...(i)))...);
}

// Each of the first kLeft lanes with the one kLeft further, and so on down to one lane.
template <int kLeft, class V>
inline V fold_sum(V value) {
  if constexpr (kLeft == 0) {
    return value;
  } else {
    using Lanes = std::make_integer_sequence<int, sizeof(V) / sizeof(value[0])>;
    return fold_sum<kLeft / 2>(value + rotate_lanes<kLeft>(value, Lanes{}));
  }
}

template <class V>
inline auto reduce_sum(V value) {
  return fold_sum<sizeof(V) / sizeof(value[0]) / 2>(value)[0];
}

template <class V>
inline auto reduce_max(V value) {
  constexpr int lanes = sizeof(V) / sizeof(value[0]);
  auto best = value[0];
  for (int i = 1; i < lanes; ++i) best = value[i] > best ? value[i] : best;
  return best;
}

// The elements of two vectors in turn: of their lower halves, and of their upper halves.
template <class V, int... i>
inline V interleave_low(V a, V b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (i / 2 + (i % 2) * static_cast<int>(sizeof...(i)))...);
}

template <class V, int... i>
inline V interleave_high(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int lanes = sizeof...(i);
  return __builtin_shufflevector(a, b, (lanes / 2 + i / 2 + (i % 2) * lanes)...);
}

// sums[i] += value[i], in double
template <class V>
inline void add_lanes(double* sums, V value) {
  constexpr int lanes = sizeof(V) / sizeof(value[0]);
  typedef double Wide __attribute__((vector_size(lanes * sizeof(double))));
  Wide sum;  // not load_bits<Wide>: as a template argument a dependent vector type loses its vector_size
  std::memcpy(&sum, sums, sizeof(sum));
  sum += __builtin_convertvector(value, Wide);
  std::memcpy(sums, &sum, sizeof(sum));
}

// Calls f with a null pointer of the storage type that dtype names; activations only.
template <class F>
inline void with_storage(DType dtype, F&& f) {
  with_activation<bfloat16, float16>(dtype, f);
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
