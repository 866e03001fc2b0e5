// Marks the formulas that every backend shares.
#pragma once

// Internal linkage: each instruction set compiles its own copy, which the linker must not merge with
// another's.
#if defined(__CUDACC__)
#define MEGALODON_MATH static __host__ __device__ __forceinline__
#else
#define MEGALODON_MATH static inline __attribute__((always_inline))
#endif
