// Haswell and newer: AVX2, FMA, F16C.
#define MEGALODON_TARGET avx2
#define MEGALODON_VECTOR_BYTES 32
#define MEGALODON_REGISTERS 16

namespace megalodon::cpu::avx2 {
static bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
}  // namespace megalodon::cpu::avx2

#include "cpu/targets/target.inl"
