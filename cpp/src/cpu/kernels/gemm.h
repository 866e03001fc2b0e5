// The register-blocked core of every matrix product: a block of kBlockRows x (kVectors vectors) of the result
// stays in registers while the depth runs by.
//
// The right operand is packed in panels of kPanel columns, panel[depth][kPanel], read a vector at a time. The
// left operand is read one element at a time and needs no packing: either along its rows or along its
// columns.
#pragma once

#include "cpu/kernels/simd.h"

namespace megalodon::cpu::MEGALODON_TARGET {

#define MEGALODON_INLINE inline __attribute__((always_inline))

// As many accumulators as leave registers for one row of the right operand and one element of the left.
inline constexpr int kBlockRows = kVectorBytes == 64 ? 8 : 4;
inline constexpr int kPanelVectors = kVectorBytes == 16 ? (kRegisters == 32 ? 4 : 2) : 3;
template <class A>
inline constexpr int kPanel = kPanelVectors * kLanes<A>;

// Element (i, k) of the left operand.
template <class A>
struct AlongRows {
  const A* data;
  std::int64_t pitch;
  MEGALODON_INLINE A at(std::int64_t i, std::int64_t k) const { return data[i * pitch + k]; }
  MEGALODON_INLINE AlongRows from(std::int64_t k) const { return {data + k, pitch}; }
};

template <class A>
struct AlongColumns {
  const A* data;  // [depth][kPanel]
  MEGALODON_INLINE A at(std::int64_t i, std::int64_t k) const { return data[k * kPanel<A> + i]; }
  MEGALODON_INLINE AlongColumns from(std::int64_t k) const { return {data + k * kPanel<A>}; }
};

template <class A, int kVectors>
struct Block {
  Vec<A> sum[kBlockRows][kVectors] = {};

  // sum[i] += left(i, 0) right[0], for rows first <= i < last.
  template <class Left>
  MEGALODON_INLINE void step(Left left, const A* right, int first = 0, int last = kBlockRows) {
    Vec<A> row[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) row[j] = load(right + j * kLanes<A>);
#pragma GCC unroll 8
    for (int i = 0; i < kBlockRows; ++i) {
      if (i < first || i >= last) continue;
      const Vec<A> element = splat(left.at(i, 0));
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] += element * row[j];
    }
  }

  template <class Left>
  MEGALODON_INLINE void multiply(Left left, const A* right, std::int64_t depth) {
    for (std::int64_t k = 0; k < depth; ++k) step(left.from(k), right + k * kPanel<A>);
  }

  // A square of depth kBlockRows on the diagonal of a causal product. Lower: row i takes k <= i.
  template <class Left>
  MEGALODON_INLINE void multiply_lower(Left left, const A* right) {
#pragma GCC unroll 8
    for (int k = 0; k < kBlockRows; ++k) step(left.from(k), right + k * kPanel<A>, k, kBlockRows);
  }

  // Upper: row i takes k >= i. Steps before `begin` and from `end` on are left out.
  template <class Left>
  MEGALODON_INLINE void multiply_upper(Left left, const A* right, std::int64_t begin, std::int64_t end) {
#pragma GCC unroll 8
    for (int k = 0; k < kBlockRows; ++k) {
      if (k >= begin && k < end) step(left.from(k), right + k * kPanel<A>, 0, k + 1);
    }
  }

  // Asks for the memory that write() will read, while the products are still to come.
  static MEGALODON_INLINE void prefetch(const A* to, std::int64_t pitch) {
    for (int i = 0; i < kBlockRows; ++i) {
      for (int j = 0; j < kVectors; ++j) __builtin_prefetch(to + i * pitch + j * kLanes<A>, 1);
    }
  }

  MEGALODON_INLINE void write(A* to, std::int64_t pitch, bool accumulate) const {
#pragma GCC unroll 8
    for (int i = 0; i < kBlockRows; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        A* at = to + i * pitch + j * kLanes<A>;
        store(at, accumulate ? load(at) + sum[i][j] : sum[i][j]);
      }
    }
  }
};

// Calls f with the number of vectors that hold `columns` <= kPanel columns, as a constant.
template <class A, class F>
MEGALODON_INLINE void with_vectors(std::int64_t columns, F&& f) {
  const std::int64_t vectors = (columns + kLanes<A> - 1) / kLanes<A>;
  if (vectors >= kPanelVectors) return f(std::integral_constant<int, kPanelVectors>());
  if (vectors == 1) return f(std::integral_constant<int, 1>());
  if constexpr (kPanelVectors > 2) {
    if (vectors == 2) return f(std::integral_constant<int, 2>());
    if constexpr (kPanelVectors > 3) return f(std::integral_constant<int, 3>());
  }
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
