// All that a kernel may use of the machine it runs on. nvcc finds the machine here; any other compiler takes
// the interpreter of tests/simt instead, which offers the same names.
#pragma once

#include <cstdint>

#if !defined(__CUDACC__)
#include "simt/device.h"
#else

#define MEGALODON_KERNEL __global__
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

// The value that lane `source` of the warp passes. All 32 lanes call it together.
template <class T>
MEGALODON_DEVICE T warp_shuffle(T value, int source) {
  return __shfl_sync(0xFFFFFFFFu, value, source);
}

// a b rounded, which no compiler may merge with an addition into one rounding.
MEGALODON_DEVICE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
MEGALODON_DEVICE double rounded_product(double a, double b) { return __dmul_rn(a, b); }

}  // namespace megalodon::cuda
#endif
