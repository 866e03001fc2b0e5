#include "megalodon/ops/timestep_norm.h"

namespace megalodon {
namespace {

// Counts to which `length` tokens can be added.
void validate_counts(const Check& check, const Tensor& count, std::int64_t length) {
  if (count.device.type != DeviceType::cpu) return;
  for (std::int64_t i = 0; i < count.size(0); ++i) {
    check.range("initial_state.count", count.as<const std::int64_t>()[i * count.stride(0)], 0,
                INT64_MAX - length);
  }
}

}  // namespace

TimestepNormShape validate(const TimestepNorm& op) {
  const Check check("timestep_norm", "x", op.x);
  check.activation("x", op.x, {-1, -1, -1});
  const std::int64_t dim = op.x.size(2), groups = op.num_groups;
  check.range("num_groups", groups, 1, dim);
  if (dim % groups != 0) {
    check.fail("num_groups", "a divisor of the " + std::to_string(dim) + " channels", std::to_string(groups));
  }
  check.positive("eps", op.eps);
  check.together("weight", op.weight, "bias", op.bias);
  if (op.weight.defined()) {
    check.parameter("weight", op.weight, {dim});
    check.parameter("bias", op.bias, {dim});
  }
  const SequenceShape sequence = validate(check, op.sequence, op.x.size(0), op.x.size(1));
  check.together("initial_state.mean", op.initial_mean, "initial_state.count", op.initial_count);
  check.together("initial_state.var", op.initial_var, "initial_state.count", op.initial_count);
  if (op.initial_count.defined()) {
    check.exact("initial_state.count", op.initial_count, DType::int64, {sequence.count});
    validate_counts(check, op.initial_count, sequence.length);
    check.parameter("initial_state.mean", op.initial_mean, {sequence.count, groups});
    check.parameter("initial_state.var", op.initial_var, {sequence.count, groups});
  }
  return {sequence, dim, groups};
}

void validate_backward(const TimestepNormBackward& op, const TimestepNormShape& shape) {
  const Check check("timestep_norm", "x", op.x);
  check.activation("dy", op.dy, {shape.batch, shape.length, shape.dim});
  if (op.dmean.defined()) check.parameter("dmean", op.dmean, {shape.count, shape.groups});
  if (op.dvar.defined()) check.parameter("dvar", op.dvar, {shape.count, shape.groups});
  check.together("token_scale", op.kept.scale, "token_mean", op.kept.mean);
  if (op.kept.mean.defined()) {
    check.exact("token_mean", op.kept.mean, DType::float64, {shape.batch, shape.length, shape.groups});
    check.parameter("token_scale", op.kept.scale, {shape.batch, shape.length, shape.groups});
  }
}

}  // namespace megalodon
