// Walks the rows of contiguous (rows, D) arrays vector by vector.
#pragma once

#include "cpu/kernels/parallel.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// Threads worth waking for work that reads and writes each of `elements` once: moving one takes as long as
// about four operations.
inline int threads_for_elements(int threads, std::int64_t elements) {
  return useful_threads(threads, 4 * elements);
}

inline constexpr std::int64_t kCacheLine = 64;  // bytes

inline float square_root(float value) { return __builtin_sqrtf(value); }
inline double square_root(double value) { return __builtin_sqrt(value); }

inline std::int64_t clamp(std::int64_t value, std::int64_t low, std::int64_t high) {
  return value < low ? low : value < high ? value : high;
}

template <class A>
inline std::int64_t padded_to_vector(std::int64_t count) {
  return (count + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

// How for_vectors hands out lanes: all of a vector's, or the first `count` of the last one.
template <class A>
struct AllLanes {
  template <class T>
  Vec<A> read(const T* from) const {
    return load(from);
  }
  template <class T>
  void write(T* to, Vec<A> value) const {
    store(to, value);
  }
  template <class T>
  void stream_to(T* to, Vec<A> value) const {
    stream(to, value);
  }
  Vec<A> keep(Vec<A> value) const { return value; }
};

template <class A>
struct FirstLanes {
  std::int64_t count;

  template <class T>
  Vec<A> read(const T* from) const {
    return load_partial(from, count);
  }
  template <class T>
  void write(T* to, Vec<A> value) const {
    store_partial(to, value, count);
  }
  template <class T>
  void stream_to(T* to, Vec<A> value) const {
    write(to, value);
  }
  // Zeroes the lanes past count, for sums.
  Vec<A> keep(Vec<A> value) const {
    A lanes[kLanes<A>] = {};
    std::memcpy(lanes, &value, static_cast<std::size_t>(count) * sizeof(A));
    return load(lanes);
  }
};

// f(lanes, c, slot) for every vector of a row of `dim` elements, c being its first element. A sum over the
// row keeps kSlots accumulators, one per slot, so that no addition waits for the one before it. f is taken by
// value and everything inlined: what it holds and the sums stay in registers, where the memory it writes to
// cannot be taken to change them.
inline constexpr int kSlots = 4;

template <class A, class F>
__attribute__((always_inline)) inline void for_vectors(std::int64_t dim, const F f) {
  constexpr int lanes = kLanes<A>;
  std::int64_t c = 0;
  for (; c + kSlots * lanes <= dim; c += kSlots * lanes) {
    f(AllLanes<A>{}, c, 0);
    f(AllLanes<A>{}, c + lanes, 1);
    f(AllLanes<A>{}, c + 2 * lanes, 2);
    f(AllLanes<A>{}, c + 3 * lanes, 3);
  }
  for (; c + lanes <= dim; c += lanes) f(AllLanes<A>{}, c, 0);
  if (c < dim) f(FirstLanes<A>{dim - c}, c, 1);
}

template <class A>
struct SlotSums {
  Vec<A> slot[kSlots] = {};

  A total() const { return reduce_sum((slot[0] + slot[1]) + (slot[2] + slot[3])); }
};

inline RowShape row_shape(const Tensor& x) { return {x.numel() / x.size(-1), x.size(-1)}; }

// Starts bringing in what will be read or written after what is at hand. The empty statement keeps GCC from
// taking this, and what calls it, for functions without effect, whose calls it may leave out.
inline void prefetch(const void* ahead) {
  __builtin_prefetch(ahead);
  asm volatile("");
}

// A row of a contiguous array and the one `step` after it, or itself where that is past the end of its range.
// Prefetching the next row while this one is worked on keeps a kernel from waiting for memory.
template <class T>
struct Row {
  T* data = nullptr;
  T* next = nullptr;

  Row() = default;
  Row(const Tensor& array, std::int64_t row, std::int64_t end, std::int64_t dim, std::int64_t step)
      : data(array.defined() ? array.as<T>() + row * dim : nullptr),
        next(row + step < end ? data + step * dim : data) {}

  // To be called for every vector: touches each cache line about once.
  void prefetch_next(std::int64_t c, int slot) const {
    constexpr int vector_bytes = kLanes<Acc<std::remove_const_t<T>>> * static_cast<int>(sizeof(T));
    if (slot * vector_bytes % 64 == 0) prefetch(next + c);
  }
};

// How an output is written: through the caches, or past them to memory.
//
// A line that goes through the cache is first read from memory, which for an output is a read more than must
// be. Past the caches nothing is, but whoever reads the output next finds it in memory: right for arrays that
// a cache would not have kept.
struct ThroughCache {
  static void prefetch_line(const void* ahead) { prefetch(ahead); }
  template <class T>
  static void prefetch_next(const Row<T>& row, std::int64_t c, int slot) {
    row.prefetch_next(c, slot);
  }
  template <class Lanes, class T, class V>
  static void write(const Lanes& lanes, T* to, V value) {
    lanes.write(to, value);
  }
};
struct PastCache {
  static void prefetch_line(const void*) {}
  template <class T>
  static void prefetch_next(const Row<T>&, std::int64_t, int) {}
  template <class Lanes, class T, class V>
  static void write(const Lanes& lanes, T* to, V value) {
    lanes.stream_to(to, value);
  }
};

// Elements of an array that make a vector of their accumulation type.
inline std::int64_t lanes_of(DType dtype) { return dtype == DType::float64 ? kLanes<double> : kLanes<float>; }

// Whether every vector of the array's rows is aligned, and the array too large to be worth its room in cache.
inline bool goes_past_cache(const Tensor& array) {
  constexpr std::int64_t kLeastBytes = 8 << 20;
  const std::int64_t size = item_size(array.dtype);
  const std::int64_t lanes = lanes_of(array.dtype);
  bool aligned =
      reinterpret_cast<std::uintptr_t>(array.data) % static_cast<std::uintptr_t>(lanes * size) == 0;
  for (int axis = 0; axis < array.rank - 1; ++axis) aligned &= array.stride(axis) % lanes == 0;
  return kCanStream && aligned && array.numel() * size >= kLeastBytes;
}

template <class F>
__attribute__((always_inline)) inline void with_output(bool past_cache, const F& f) {
  past_cache ? f(PastCache{}) : f(ThroughCache{});
}

// f(part, begin, end) for `parts` contiguous ranges of near-equal size that cover [0, rows).
template <class F>
inline void for_row_parts(std::int64_t rows, int parts, const F& f) {
  parallel_for(parts, parts,
               [&](std::int64_t part) { f(part, rows * part / parts, rows * (part + 1) / parts); });
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
