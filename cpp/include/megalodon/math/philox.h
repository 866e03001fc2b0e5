// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a random word as a
// function of its index, so that backward finds the pattern of forward again and devices agree on it.
#pragma once

#include <cstdint>

#include "megalodon/math/inline.h"

namespace megalodon::math {

// The first of the four words at counter (c0, c1, c2, c3) under the key (k0, k1).
MEGALODON_MATH std::uint32_t philox4x32_10(std::uint32_t c0, std::uint32_t c1, std::uint32_t c2,
                                           std::uint32_t c3, std::uint32_t k0, std::uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<std::uint32_t>(product1);
    c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<std::uint32_t>(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c0;
}

// DropKey removes key s from query t where the word at (s, t, head, row) is below this. Needs 0 <= p < 1.
MEGALODON_MATH std::uint32_t dropout_threshold(double p) { return static_cast<std::uint32_t>(p * 0x1p32); }

}  // namespace megalodon::math
