// Skylake-SP, Ice Lake and newer: AVX-512 F, BW, DQ and VL.
#define MEGALODON_TARGET avx512
#define MEGALODON_VECTOR_BYTES 64
#define MEGALODON_REGISTERS 32

namespace megalodon::cpu::avx512 {
static bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
}  // namespace megalodon::cpu::avx512

#include "cpu/targets/target.inl"
