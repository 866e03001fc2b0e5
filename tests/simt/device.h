// cuda/common/device.cuh for the host: the same names, every access checked.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simt/interpreter.h"

#define MEGALODON_KERNEL inline
#define MEGALODON_DEVICE static inline

namespace megalodon::cuda {

inline constexpr int kWarp = simt::kWarp;

// Elements [low, high) around `data`.
template <class T>
class Span {
 public:
  Span() = default;
  Span(T* data, std::int64_t low, std::int64_t high, const char* memory)
      : data_(data), low_(low), high_(high), memory_(memory) {}
  operator Span<const T>() const
    requires(!std::is_const_v<T>)
  {
    return {data_, low_, high_, memory_};
  }

  T& operator[](std::int64_t i) const { return *at(i, 1); }
  Span operator+(std::int64_t offset) const {
    return {data_ + offset, low_ - offset, high_ - offset, memory_};
  }
  explicit operator bool() const { return data_ != nullptr; }

  T* at(std::int64_t i, int count) const {
    if (i < low_ || i + count > high_) simt::fail_bounds(memory_, i, count, low_, high_);
    return data_ + i;
  }

 private:
  T* data_ = nullptr;
  std::int64_t low_ = 0, high_ = 0;
  const char* memory_ = "no memory";
};

template <class T>
using Global = Span<T>;

// What the machine would refuse: an access of several elements that is not aligned to its size.
template <class T>
MEGALODON_DEVICE T* address(const Span<T>& p, std::int64_t i, int count) {
  T* data = p.at(i, count);
  const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(count);
  if (reinterpret_cast<std::uintptr_t>(data) % bytes != 0) simt::fail("misaligned vector access");
  return data;
}

template <class T>
using Shared = Span<T>;

class SharedMemory {
 public:
  template <class T>
  Shared<T> take(int count) {
    const std::int64_t bytes = (count * static_cast<std::int64_t>(sizeof(T)) + 15) / 16 * 16;
    T* part = static_cast<T*>(simt::shared_memory(used_, bytes));
    used_ += bytes;
    return {part, 0, count, "shared memory"};
  }

 private:
  std::int64_t used_ = 0;
};

MEGALODON_DEVICE int thread_index() { return simt::thread_index(); }
MEGALODON_DEVICE int block_threads() { return simt::block_threads(); }
MEGALODON_DEVICE std::int64_t block_x() { return simt::block_x(); }
MEGALODON_DEVICE std::int64_t block_y() { return simt::block_y(); }
MEGALODON_DEVICE std::int64_t blocks_x() { return simt::grid().x; }
MEGALODON_DEVICE void block_barrier() { simt::block_barrier(); }

// The interpreter is compiled without fused multiply-add.
MEGALODON_DEVICE float rounded_product(float a, float b) { return a * b; }
MEGALODON_DEVICE double rounded_product(double a, double b) { return a * b; }

template <class T>
MEGALODON_DEVICE T warp_shuffle(T value, int source) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = simt::warp_exchange(bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace megalodon::cuda
