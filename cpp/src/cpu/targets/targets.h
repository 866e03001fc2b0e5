// The instruction sets that this build carries.
#pragma once

#include <span>

#include "cpu/kernels.h"

namespace megalodon::cpu {

#if defined(MEGALODON_SIMT_TARGET)
namespace simt {
extern const KernelTable table;  // the CUDA kernels over the interpreter of tests/simt
}
#else
namespace baseline {
extern const KernelTable table;
}
#endif
#if defined(MEGALODON_X86_TARGETS)
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
namespace avx512bf16 {
extern const KernelTable table;
}
#endif
#if defined(MEGALODON_ARM_TARGETS)
namespace neon {
extern const KernelTable table;
}
#endif

// Narrowest first. Each includes the one before it, and its `supported` asks for what it adds.
inline std::span<const KernelTable* const> compiled_tables() {
  static constexpr const KernelTable* tables[] = {
#if defined(MEGALODON_SIMT_TARGET)
      &simt::table,
#else
      &baseline::table,
#endif
#if defined(MEGALODON_X86_TARGETS)
      &avx2::table, &avx512::table, &avx512bf16::table,
#endif
#if defined(MEGALODON_ARM_TARGETS)
      &neon::table,
#endif
  };
  return tables;
}

}  // namespace megalodon::cpu
