// Rotary position embedding (Su et al., arXiv 2104.09864) in adjacent pairs.
#pragma once

#include <cmath>
#include <cstdint>

#include "megalodon/math/inline.h"

namespace megalodon::math {

// Pair j of `dim` channels turns by this angle per position: base^(-2j / dim).
MEGALODON_MATH double rope_frequency(double base, std::int64_t pair, std::int64_t dim) {
  return ::pow(base, -2.0 * static_cast<double>(pair) / static_cast<double>(dim));
}

}  // namespace megalodon::math
