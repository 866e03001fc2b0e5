// Timestep normalization (Megalodon, section 3.2): group norm with cumulative statistics over time.
//
//   n_t = n_{t-1} + 1     d = m_t - mean_{t-1}     mean_t = mean_{t-1} + d / n_t
//   var_t = (n_{t-1} var_{t-1} + v_t + d^2 n_{t-1} / n_t) / n_t
//   y_t = (x_t - mean_t) rsqrt(var_t + eps) weight + bias       m_t, v_t: mean and variance of the token's
//   group
#pragma once

#include "megalodon/ops/sequence.h"

namespace megalodon {

struct TimestepNorm {
  Tensor x;              // (B, L, D)
  Tensor weight, bias;   // (D,), both or neither
  Tensor initial_count;  // int64 (count,); the three initial statistics are given together or not at all
  Tensor initial_mean;   // (count, G)
  Tensor initial_var;    // (count, G)
  SequenceInputs sequence;
  std::int64_t num_groups = 1;
  double eps = 1e-5;
};

struct TimestepNormShape : SequenceShape {
  std::int64_t dim = 0;     // D
  std::int64_t groups = 0;  // G
};

TimestepNormShape validate(const TimestepNorm& op);

// The statistics of every token, (B, L, G), which forward may keep for backward. Those of a row or document
// follow each other from its beginning on: padding has no place among them, and the end of its row is 0.
struct KeptStatistics {
  Tensor mean;   // float64
  Tensor scale;  // rsqrt(var + eps), of the type of the state's mean
};

struct TimestepNormForward : TimestepNorm {
  Tensor y;             // (B, L, D)
  Tensor count;         // int64 (count,)
  Tensor mean;          // (count, G)
  Tensor var;           // (count, G)
  KeptStatistics kept;  // or absent
};

// Finds the statistics again where forward did not keep them.
struct TimestepNormBackward : TimestepNorm {
  KeptStatistics kept;
  Tensor dy;           // (B, L, D)
  Tensor dmean, dvar;  // (count, G) or absent
  Tensor dx;
  Tensor dweight, dbias;               // absent where weight is
  Tensor dinitial_mean, dinitial_var;  // absent where the initial statistics are
};

void validate_backward(const TimestepNormBackward& op, const TimestepNormShape& shape);

}  // namespace megalodon
