// Cooper Lake, Zen 4 and newer: AVX-512 with products of bfloat16.
#define MEGALODON_TARGET avx512bf16
#define MEGALODON_VECTOR_BYTES 64
#define MEGALODON_REGISTERS 32

namespace megalodon::cpu::avx512bf16 {
static bool supported() { return __builtin_cpu_supports("avx512bf16"); }
}  // namespace megalodon::cpu::avx512bf16

#include "cpu/targets/target.inl"
