// Row-wise operators around the block: norms, gate and residuals. A row is the last axis; the leading axes
// are any number of rows and every array is contiguous.
#pragma once

#include "megalodon/check.h"
#include "megalodon/tensor.h"

namespace megalodon {

struct RowShape {
  std::int64_t rows = 0;
  std::int64_t dim = 0;  // D
};

// rms_norm        x rsqrt(mean(x^2) + eps) weight                                  center = false
// layer_norm      (x - mean) rsqrt(var + eps) weight + bias                        center = true
// add_layer_norm  layer_norm of x + residual; the sum is not an output             center = true
struct Norm {
  const char* name = "layer_norm";
  bool center = true;
  Tensor x;         // (..., D); called branch where there is a residual
  Tensor residual;  // (..., D) or absent
  Tensor weight;    // (D,) or absent
  Tensor bias;      // (D,), with weight and center only
  double eps = 1e-5;
};

RowShape validate(const Norm& op);

struct NormForward : Norm {
  Tensor y;
};

struct NormBackward : Norm {
  Tensor dy;
  Tensor dx;  // also the gradient of residual
  Tensor dweight, dbias;
};

void validate_cotangents(const NormBackward& op);

// silu(gate) * value
struct SiluMul {
  Tensor gate, value;  // (..., D)
};

RowShape validate(const SiluMul& op);

struct SiluMulForward : SiluMul {
  Tensor y;
};

struct SiluMulBackward : SiluMul {
  Tensor dy;
  Tensor dgate, dvalue;
};

void validate_cotangents(const SiluMulBackward& op);

// silu(x), which frameworks have too; without a backward, for steps that the core runs alone.
struct Silu {
  Tensor x;  // (..., D)
  Tensor y;
};

RowShape validate(const Silu& op);

// residual + alpha * branch; alpha absent means 1
struct TwoHopResidual {
  Tensor branch, residual;  // (..., D)
  Tensor alpha;             // (D,) or absent
};

RowShape validate(const TwoHopResidual& op);

struct TwoHopResidualForward : TwoHopResidual {
  Tensor y;
};

// The gradient of residual is dy itself.
struct TwoHopResidualBackward : TwoHopResidual {
  Tensor dy;
  Tensor dbranch;
  Tensor dalpha;  // absent where alpha is
};

void validate_cotangents(const TwoHopResidualBackward& op);

}  // namespace megalodon
