// Element types in memory, and the type in which a kernel computes with them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/device.cuh"
#include "megalodon/storage.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace megalodon::cuda {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

// Accumulators, parameters and states: double beside double, float otherwise.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

MEGALODON_DEVICE float read(float value) { return value; }
MEGALODON_DEVICE double read(double value) { return value; }
MEGALODON_DEVICE void write(float& to, float value) { to = value; }
MEGALODON_DEVICE void write(double& to, double value) { to = value; }

// write_pair: two numbers rounded to 16 bits each, in one register as they lie in memory.
#if defined(__CUDACC__)
MEGALODON_DEVICE float read(BFloat16 value) { return __uint_as_float(std::uint32_t{value.bits} << 16); }
MEGALODON_DEVICE float read(Float16 value) { return __half2float(__ushort_as_half(value.bits)); }
MEGALODON_DEVICE void write(BFloat16& to, float value) {
  to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
MEGALODON_DEVICE void write(Float16& to, float value) { to.bits = __half_as_ushort(__float2half_rn(value)); }
template <class T>
MEGALODON_DEVICE std::uint32_t write_pair(float first, float second) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(first, second);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
}
// Both 16-bit elements of a pair times a factor, rounded.
MEGALODON_DEVICE std::uint32_t pair_product(std::uint32_t pair, BFloat16 factor) {
  const auto both = __bfloat162bfloat162(__ushort_as_bfloat16(factor.bits));
  auto& elements = reinterpret_cast<__nv_bfloat162&>(pair);
  elements = __hmul2(elements, both);
  return pair;
}
MEGALODON_DEVICE std::uint32_t pair_product(std::uint32_t pair, Float16 factor) {
  const auto both = __half2half2(__ushort_as_half(factor.bits));
  auto& elements = reinterpret_cast<__half2&>(pair);
  elements = __hmul2(elements, both);
  return pair;
}
#else
MEGALODON_DEVICE float read(BFloat16 value) { return std::bit_cast<float>(std::uint32_t{value.bits} << 16); }
MEGALODON_DEVICE float read(Float16 value) { return static_cast<float>(std::bit_cast<_Float16>(value.bits)); }
// To the nearest, ties to even; NaN stays NaN.
MEGALODON_DEVICE void write(BFloat16& to, float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
  to.bits = static_cast<std::uint16_t>((value != value ? bits | 0x400000u : rounded) >> 16);
}
MEGALODON_DEVICE void write(Float16& to, float value) {
  to.bits = std::bit_cast<std::uint16_t>(static_cast<_Float16>(value));
}
template <class T>
MEGALODON_DEVICE std::uint32_t write_pair(float first, float second) {
  T low, high;
  write(low, first);
  write(high, second);
  return low.bits | std::uint32_t{high.bits} << 16;
}
template <class T>
MEGALODON_DEVICE std::uint32_t pair_product(std::uint32_t pair, T factor) {
  T low{static_cast<std::uint16_t>(pair)}, high{static_cast<std::uint16_t>(pair >> 16)};
  write(low, read(low) * read(factor));
  write(high, read(high) * read(factor));
  return low.bits | std::uint32_t{high.bits} << 16;
}
#endif

// The first and the second number of a pair.
template <class T>
MEGALODON_DEVICE float read_first(std::uint32_t pair) {
  return read(T{static_cast<std::uint16_t>(pair)});
}
template <class T>
MEGALODON_DEVICE float read_second(std::uint32_t pair) {
  return read(T{static_cast<std::uint16_t>(pair >> 16)});
}

// V elements of memory that are read and written as one.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T element[V];
};

// V elements from p[i] on as they lie in memory. V > 1 needs an aligned address.
template <int V, class T>
MEGALODON_DEVICE Pack<T, V> load_pack(const Global<const T>& p, std::int64_t i) {
  return *reinterpret_cast<const Pack<T, V>*>(address(p, i, V));
}

template <int V, class T, class A>
MEGALODON_DEVICE void unpack(const Pack<T, V>& pack, A (&to)[V]) {
#pragma unroll
  for (int e = 0; e < V; ++e) to[e] = read(pack.element[e]);
}

// The same as accumulators.
template <int V, class T, class A>
MEGALODON_DEVICE void load(const Global<const T>& p, std::int64_t i, A (&to)[V]) {
  unpack(load_pack<V>(p, i), to);
}

template <int V, class T, class A>
MEGALODON_DEVICE void store(const Global<T>& p, std::int64_t i, const A (&from)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int e = 0; e < V; ++e) write(pack.element[e], from[e]);
  *reinterpret_cast<Pack<T, V>*>(address(p, i, V)) = pack;
}

// Calls f(pointer) with a null pointer of the element type; activations only.
template <class F>
void with_storage(DType dtype, const F& f) {
  with_activation<BFloat16, Float16>(dtype, f);
}

}  // namespace megalodon::cuda
