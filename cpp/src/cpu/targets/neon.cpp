// AArch64 with half-precision conversions.
#define MEGALODON_TARGET neon
#define MEGALODON_VECTOR_BYTES 16
#define MEGALODON_REGISTERS 32

namespace megalodon::cpu::neon {
static bool supported() { return true; }
}  // namespace megalodon::cpu::neon

#include "cpu/targets/target.inl"
