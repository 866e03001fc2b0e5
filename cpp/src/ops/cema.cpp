#include "megalodon/ops/cema.h"

namespace megalodon {
namespace {

constexpr std::int64_t kMaxDims = 64;  // N

// Checks a complex quantity, whose trailing axis of 2 the real special case does not have.
void complex_parameter(const Check& check, bool real, const char* argument, const Tensor& tensor,
                       std::initializer_list<std::int64_t> real_shape,
                       std::initializer_list<std::int64_t> complex_shape) {
  check.parameter(argument, tensor, real ? real_shape : complex_shape);
}

}  // namespace

CemaShape validate(const Cema& op) {
  const Check check(op.name, "x", op.x);
  check.activation("x", op.x, {-1, -1, -1});
  const std::int64_t dim = op.x.size(2);
  check.parameter("p", op.p, {dim, -1});
  const std::int64_t ndim = op.p.size(1);
  if (ndim > kMaxDims) check.fail("p", "at most 64 EMA dims per channel", std::to_string(ndim));
  complex_parameter(check, op.real, "q", op.q, {dim, ndim}, {dim, ndim, 2});
  complex_parameter(check, op.real, "gamma", op.gamma, {dim, ndim}, {dim, ndim, 2});
  if (op.omega.defined()) check.parameter("omega", op.omega, {dim});
  const SequenceShape sequence = validate(check, op.sequence, op.x.size(0), op.x.size(1));
  if (op.initial_state.defined()) {
    complex_parameter(check, op.real, "initial_state", op.initial_state, {sequence.count, dim, ndim},
                      {sequence.count, dim, ndim, 2});
  }
  return {sequence, dim, ndim};
}

void validate_cotangents(const CemaBackward& op, const CemaShape& shape) {
  const Check check(op.name, "x", op.x);
  check.activation("dy", op.dy, {shape.batch, shape.length, shape.dim});
  if (op.dstate.defined()) {
    complex_parameter(check, op.real, "dstate", op.dstate, {shape.count, shape.dim, shape.ndim},
                      {shape.count, shape.dim, shape.ndim, 2});
  }
}

CemaShape validate(const CemaCoefficients& op) {
  const Check check("cema_coefficients", "alpha", op.alpha);
  if (parameter_dtype(op.alpha.dtype) != op.alpha.dtype) {
    check.fail_type("alpha", "float32 or float64", name(op.alpha.dtype));
  }
  check.parameter("alpha", op.alpha, {-1, -1});
  const std::int64_t dim = op.alpha.size(0), ndim = op.alpha.size(1);
  if (ndim > kMaxDims) check.fail("alpha", "at most 64 EMA dims per channel", std::to_string(ndim));
  check.parameter("delta", op.delta, {dim, ndim});
  check.parameter("theta", op.theta, {dim});
  return {{}, dim, ndim};
}

void validate_cotangents(const CemaCoefficientsBackward& op, const CemaShape& shape) {
  const Check check("cema_coefficients", "alpha", op.alpha);
  check.parameter("dp", op.dp, {shape.dim, shape.ndim});
  if (op.dq.defined()) check.parameter("dq", op.dq, {shape.dim, shape.ndim, 2});
}

}  // namespace megalodon
