// cuda/common/device.cuh for the host: the same names, every access checked.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "simt/interpreter.h"

#define MEGALODON_KERNEL inline
#define MEGALODON_RESIDENT(threads, blocks)
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
MEGALODON_DEVICE void warp_barrier() { simt::warp_meet("warp barrier", {}); }

MEGALODON_DEVICE std::int32_t take_ticket(const Span<std::int32_t>& counter) { return counter[0]++; }
MEGALODON_DEVICE void publish(const Span<std::int32_t>& flag, std::int32_t value) { flag[0] = value; }
MEGALODON_DEVICE std::int32_t wait_for(const Span<std::int32_t>& flag, std::int32_t least) {
  simt::wait_until([&] { return flag[0] >= least; });
  return flag[0];
}

// The interpreter is compiled without fused multiply-add.
MEGALODON_DEVICE float rounded_product(float a, float b) { return a * b; }
MEGALODON_DEVICE double rounded_product(double a, double b) { return a * b; }

template <class T>
MEGALODON_DEVICE T warp_shuffle(T value, int source) {
  static_assert(sizeof(T) <= sizeof(simt::Deposit));
  if (source < 0 || source >= kWarp) simt::fail("shuffle from lane " + std::to_string(source));
  simt::Deposit mine{};
  std::memcpy(&mine, &value, sizeof(T));
  std::memcpy(&value, &simt::warp_meet("shuffle", mine)[source], sizeof(T));
  return value;
}

// Each lane deposits the row it names, and takes two elements of one row of each matrix; transposed, one
// element of each of two rows.
template <bool kTransposed, class T>
MEGALODON_DEVICE void load_matrices(const Shared<T>& p, int i, std::uint32_t (&to)[4]) {
  static_assert(sizeof(T) == 2);
  simt::Deposit mine{};
  std::memcpy(&mine, address(p, i, 8), 16);
  const simt::Deposit* const rows = simt::warp_meet("load of matrices", mine);
  const int lane = thread_index() % kWarp, group = lane / 4, pair = lane % 4;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto element = [&](int row, int column) {
      return rows[8 * matrix + row][static_cast<std::size_t>(column / 2)] >> 16 * (column % 2) & 0xFFFFu;
    };
    to[matrix] = kTransposed ? element(2 * pair, group) | element(2 * pair + 1, group) << 16
                             : element(group, 2 * pair) | element(group, 2 * pair + 1) << 16;
  }
}

// As PTX lays the fragments out: lane 4 r + j holds columns 2 j and 2 j + 1 of rows r and r + 8 of a and of
// the sums, in a also columns 8 further; and rows 2 j, 2 j + 1 and those 8 further of column r of b. Products
// are exact, sums rounded to float in the order of k.
template <class Decode>
MEGALODON_DEVICE void multiply_matrices(float (&sum)[4], const std::uint32_t (&a)[4],
                                        const std::uint32_t (&b)[2], const Decode& decode) {
  simt::Deposit mine;
  for (std::size_t i = 0; i < 12; ++i) {
    const std::uint32_t pair = i < 8 ? a[i / 2] : b[i / 2 - 4];
    mine[i] = std::bit_cast<std::uint32_t>(decode(static_cast<std::uint16_t>(pair >> 16 * (i % 2))));
  }
  const simt::Deposit* const lanes = simt::warp_meet("product of matrices", mine);
  const int lane = thread_index() % kWarp;
  for (int e = 0; e < 4; ++e) {
    const int half = e / 2, column = 2 * (lane % 4) + e % 2;
    const simt::Deposit *const left = lanes + lane / 4 * 4, *const right = lanes + column * 4;
    for (int k = 0; k < 16; ++k) {
      const auto ak = static_cast<std::size_t>(2 * half + k / 8 * 4 + k % 2),
                 bk = static_cast<std::size_t>(8 + k / 8 * 2 + k % 2);
      sum[e] += std::bit_cast<float>(left[k % 8 / 2][ak]) * std::bit_cast<float>(right[k % 8 / 2][bk]);
    }
  }
}
MEGALODON_DEVICE void multiply_bfloat16(float (&sum)[4], const std::uint32_t (&a)[4],
                                        const std::uint32_t (&b)[2]) {
  multiply_matrices(sum, a, b,
                    [](std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); });
}
MEGALODON_DEVICE void multiply_float16(float (&sum)[4], const std::uint32_t (&a)[4],
                                       const std::uint32_t (&b)[2]) {
  multiply_matrices(sum, a, b,
                    [](std::uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); });
}

template <class T>
MEGALODON_DEVICE void copy_async(const Shared<T>& to, int i, const Global<const T>& from, std::int64_t j,
                                 bool exists) {
  constexpr int count = 16 / static_cast<int>(sizeof(T));
  simt::copy_async(address(to, i, count), exists ? address(from, j, count) : nullptr);
}
MEGALODON_DEVICE void copies_commit() { simt::copies_commit(); }
template <int kPending>
MEGALODON_DEVICE void copies_wait() {
  simt::copies_wait(kPending);
}

}  // namespace megalodon::cuda
