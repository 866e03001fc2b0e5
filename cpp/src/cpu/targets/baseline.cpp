// What every CPU of the architecture has: SSE2 on x86-64, NEON registers of the base set elsewhere.
#define MEGALODON_TARGET baseline
#define MEGALODON_VECTOR_BYTES 16
#define MEGALODON_REGISTERS 16

namespace megalodon::cpu::baseline {
static bool supported() { return true; }
}  // namespace megalodon::cpu::baseline

#include "cpu/targets/target.inl"
