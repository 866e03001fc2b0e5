#include "megalodon/ops/residual.h"

namespace megalodon {
namespace {

RowShape rows_of(const Check& check, const char* argument, const Tensor& x) {
  if (x.rank < 1 || x.size(-1) < 1) check.fail(argument, "shape (..., D) with D >= 1", shape_string(x));
  check.contiguous(argument, x);
  return {x.numel() / x.size(-1), x.size(-1)};
}

// The argument is called x unless there is a second one to tell it from.
const char* input_name(const Norm& op) { return op.residual.defined() ? "branch" : "x"; }

}  // namespace

RowShape validate(const Norm& op) {
  const Check check(op.name, input_name(op), op.x);
  const RowShape shape = rows_of(check, input_name(op), op.x);
  if (op.residual.defined()) check.same_shape("residual", op.residual, op.x);
  if (op.weight.defined()) check.parameter("weight", op.weight, {shape.dim});
  if (op.center) {
    check.together("weight", op.weight, "bias", op.bias);
    if (op.bias.defined()) check.parameter("bias", op.bias, {shape.dim});
  }
  check.positive("eps", op.eps);
  return shape;
}

void validate_cotangents(const NormBackward& op) {
  Check(op.name, input_name(op), op.x).same_shape("dy", op.dy, op.x);
}

RowShape validate(const SiluMul& op) {
  const Check check("silu_mul", "gate", op.gate);
  const RowShape shape = rows_of(check, "gate", op.gate);
  check.same_shape("value", op.value, op.gate);
  return shape;
}

void validate_cotangents(const SiluMulBackward& op) {
  Check("silu_mul", "gate", op.gate).same_shape("dy", op.dy, op.gate);
}

RowShape validate(const Silu& op) { return rows_of(Check("silu", "x", op.x), "x", op.x); }

RowShape validate(const TwoHopResidual& op) {
  const Check check("two_hop_residual", "branch", op.branch);
  const RowShape shape = rows_of(check, "branch", op.branch);
  check.same_shape("residual", op.residual, op.branch);
  if (op.alpha.defined()) check.parameter("alpha", op.alpha, {shape.dim});
  return shape;
}

void validate_cotangents(const TwoHopResidualBackward& op) {
  Check("two_hop_residual", "branch", op.branch).same_shape("dy", op.dy, op.branch);
}

}  // namespace megalodon
