// The register-blocked core of every matrix product: a block of kBlockRows x (kVectors vectors) of the result
// stays in registers while the depth runs by, a group at a time.
//
// The right operand is packed in panels of kPanel columns, panel[depth / kGroup][kPanel][kGroup], read a
// vector at a time. The left operand is read one group at a time, along its rows or out of such a panel. A
// depth that cuts a group takes the elements inside only, of both operands.
#pragma once

#include "cpu/kernels/operands.h"

namespace megalodon::cpu::MEGALODON_TARGET {

#define MEGALODON_INLINE inline __attribute__((always_inline))

// As many accumulators as leave registers for one row of the right operand and one group of the left.
inline constexpr int kBlockRows = kVectorBytes == 64 ? 8 : 4;
inline constexpr int kPanelVectors = kVectorBytes == 16 ? (kRegisters == 32 ? 4 : 2) : 3;
template <class A>
inline constexpr int kPanel = kPanelVectors * kLanes<A>;

// at(i, k) is where elements k .. k + kGroup - 1 of row i lie; k is a multiple of kGroup.
template <class P>
struct AlongRows {
  const P* data;
  std::int64_t pitch;
  MEGALODON_INLINE const P* at(std::int64_t i, std::int64_t k) const { return data + i * pitch + k; }
};

template <class P>
struct AlongColumns {
  const P* data;  // [depth / kGroup][kPanel][kGroup]
  MEGALODON_INLINE const P* at(std::int64_t i, std::int64_t k) const {
    return data + k * kPanel<Acc<P>> + i * kGroup<P>;
  }
};

template <class P, int kVectors>
struct Block {
  using A = Acc<P>;
  Vec<A> sum[kBlockRows][kVectors] = {};

  // sum[i] += left(i, k) right[k] for k in [begin, end).
  template <class Left>
  MEGALODON_INLINE void multiply(Left left, const P* right, std::int64_t begin, std::int64_t end) {
    if (begin % kGroup<P> != 0 && begin < end) step(left, right, begin++);
    for (; begin + kGroup<P> <= end; begin += kGroup<P>) {
      add(left, right, begin, 0, kBlockRows, [](Vec<A> groups) { return groups; });
    }
    if (begin < end) step(left, right, begin);
  }

  // The square on the diagonal of a causal product, whose first row stands at depth `diagonal`. Lower: row i
  // takes k <= diagonal + i.
  template <class Left>
  MEGALODON_INLINE void multiply_lower(Left left, const P* right, std::int64_t diagonal) {
#pragma GCC unroll 8
    for (int k = 0; k < kBlockRows; ++k) step(left, right, diagonal + k, k, kBlockRows);
  }

  // Upper: row i takes k >= diagonal + i, for k in [begin, end).
  template <class Left>
  MEGALODON_INLINE void multiply_upper(Left left, const P* right, std::int64_t diagonal, std::int64_t begin,
                                       std::int64_t end) {
#pragma GCC unroll 8
    for (int k = 0; k < kBlockRows; ++k) {
      if (diagonal + k >= begin && diagonal + k < end) step(left, right, diagonal + k, 0, k + 1);
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

 private:
  // The group from depth k on, after `keep`, for rows first <= i < last.
  template <class Left, class Keep>
  MEGALODON_INLINE void add(Left left, const P* right, std::int64_t k, int first, int last,
                            const Keep& keep) {
    Vec<A> row[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      row[j] = keep(Operand<P>::load_groups(right + k * kPanel<A> + j * kLanes<A> * kGroup<P>));
    }
#pragma GCC unroll 8
    for (int i = 0; i < kBlockRows; ++i) {
      if (i < first || i >= last) continue;
      const Vec<A> element = keep(Operand<P>::broadcast_group(left.at(i, k)));
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) sum[i][j] = Operand<P>::multiply_add(sum[i][j], element, row[j]);
    }
  }

  // One element of depth.
  template <class Left>
  MEGALODON_INLINE void step(Left left, const P* right, std::int64_t k, int first = 0,
                             int last = kBlockRows) {
    const std::int64_t element = k % kGroup<P>;
    add(left, right, k - element, first, last,
        [=](Vec<A> groups) { return Operand<P>::only(groups, element); });
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
