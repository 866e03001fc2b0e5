// All that a kernel may use of the machine it runs on. nvcc finds the machine here; any other compiler takes
// the interpreter of tests/simt instead, which offers the same names.
#pragma once

#include <cstdint>

#if !defined(__CUDACC__)
#include "simt/device.h"
#else

#define MEGALODON_KERNEL __global__
// After MEGALODON_KERNEL: registers are dealt out so that this many blocks of so many threads fit on a
// multiprocessor.
#define MEGALODON_RESIDENT(threads, blocks) __launch_bounds__(threads, blocks)
#define MEGALODON_DEVICE static __device__ __forceinline__

namespace megalodon::cuda {

inline constexpr int kWarp = 32;

// Elements of device memory. The interpreter's knows its bounds.
template <class T>
using Global = T*;

// For `count` elements from p[i] on, which the caller accesses as one.
template <class T>
MEGALODON_DEVICE T* address(Global<T> p, std::int64_t i, int) {
  return p + i;
}

// Elements of a block's shared memory.
template <class T>
using Shared = T*;

// Hands out the shared memory of a launch from its start. Every thread asks for the same parts in the same
// order.
class SharedMemory {
 public:
  template <class T>
  __device__ __forceinline__ Shared<T> take(int count) {
    extern __shared__ __align__(16) unsigned char memory[];
    T* part = reinterpret_cast<T*>(memory + used_);
    used_ += (count * static_cast<int>(sizeof(T)) + 15) / 16 * 16;
    return part;
  }

 private:
  int used_ = 0;
};

MEGALODON_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
MEGALODON_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
MEGALODON_DEVICE std::int64_t block_x() { return blockIdx.x; }
MEGALODON_DEVICE std::int64_t block_y() { return blockIdx.y; }
MEGALODON_DEVICE std::int64_t blocks_x() { return gridDim.x; }

// Every thread of the block arrives before any goes on, and sees what the others wrote.
MEGALODON_DEVICE void block_barrier() { __syncthreads(); }
// The same for the lanes of a warp.
MEGALODON_DEVICE void warp_barrier() { __syncwarp(); }

// The value that lane `source` of the warp passes. All 32 lanes call it together.
template <class T>
MEGALODON_DEVICE T warp_shuffle(T value, int source) {
  return __shfl_sync(0xFFFFFFFFu, value, source);
}

// Four 8 x 8 matrices of 16-bit elements: lane i names row i % 8 of matrix i / 8, eight elements from p[i]
// on, aligned. Lane 4 r + j gets elements 2 j and 2 j + 1 of row r of each; transposed, of column r. A
// barrier stands between what wrote them and this.
template <bool kTransposed, class T>
MEGALODON_DEVICE void load_matrices(Shared<T> p, int i, std::uint32_t (&to)[4]) {
  static_assert(sizeof(T) == 2);
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(p + i));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from));
  }
}

// sum += a b, a (16, 16), b (16, 8), in the fragments of PTX's mma.m16n8k16 (common/warp_product.cuh).
MEGALODON_DEVICE void multiply_bfloat16(float (&sum)[4], const std::uint32_t (&a)[4],
                                        const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
MEGALODON_DEVICE void multiply_float16(float (&sum)[4], const std::uint32_t (&a)[4],
                                       const std::uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 16 bytes from device to shared memory, both aligned; zeros where `exists` is false. They arrive later: this
// thread sees them once it has waited for the group they were committed with, others after a barrier that
// follows.
template <class T>
MEGALODON_DEVICE void copy_async(Shared<T> to, int i, Global<const T> from, std::int64_t j, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(to + i))),
               "l"(exists ? from + j : from), "r"(exists ? 16 : 0)
               : "memory");
}
// Ends a group of copies.
MEGALODON_DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most the last `kPending` groups are under way.
template <int kPending>
MEGALODON_DEVICE void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Counts up from 0: every caller gets another number, and a lower one than whoever asks later.
MEGALODON_DEVICE std::int32_t take_ticket(Global<std::int32_t> counter) { return atomicAdd(counter, 1); }

// What blocks of one launch tell each other. `publish` sets a flag; whoever waits for that value or a larger
// one then sees all that the publishing thread has written, or has seen written before a barrier.
MEGALODON_DEVICE void publish(Global<std::int32_t> flag, std::int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
MEGALODON_DEVICE std::int32_t wait_for(Global<std::int32_t> flag, std::int32_t least) {
  std::int32_t value;
  for (;;) {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    if (value >= least) return value;
    __nanosleep(20);
  }
}

// a b rounded, which no compiler may merge with an addition into one rounding.
MEGALODON_DEVICE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
MEGALODON_DEVICE double rounded_product(double a, double b) { return __dmul_rn(a, b); }

}  // namespace megalodon::cuda
#endif
