#include "bindings.h"

namespace megalodon::bindings {
namespace {

// The arrays of a forward call, in the order of the Python function.
struct Arrays {
  py::handle x, weight, bias, initial_count, initial_mean, initial_var, cu_seqlens, padding_mask;
};

TimestepNorm inputs(Call& call, const Arrays& arrays, std::int64_t num_groups, double eps) {
  return {call.strided_input("x", arrays.x),
          call.input("weight", arrays.weight),
          call.input("bias", arrays.bias),
          call.input("initial_count", arrays.initial_count),
          call.input("initial_mean", arrays.initial_mean),
          call.input("initial_var", arrays.initial_var),
          {call.input("cu_seqlens", arrays.cu_seqlens), call.input("padding_mask", arrays.padding_mask)},
          num_groups,
          eps};
}

py::tuple forward(const Frontend& frontend, Queue queue, const Arrays& arrays, std::int64_t num_groups,
                  double eps, bool keep) {
  Call call("timestep_norm", frontend, queue);
  TimestepNormForward op{inputs(call, arrays, num_groups, eps)};
  const TimestepNormShape shape = validate(op);
  const DType statistic = parameter_dtype(op.x.dtype);
  op.y = call.output_like("y", op.x);
  op.count = call.output("count", DType::int64, {shape.count});
  op.mean = call.output("mean", statistic, {shape.count, shape.groups});
  op.var = call.output("var", statistic, {shape.count, shape.groups});
  if (keep) {
    op.kept.mean = call.output("token_mean", DType::float64, {shape.batch, shape.length, shape.groups});
    op.kept.scale = call.output("token_scale", statistic, {shape.batch, shape.length, shape.groups});
  }
  return call.run(&Kernels::timestep_norm_forward, op, shape);
}

py::tuple backward(const Frontend& frontend, Queue queue, py::handle dy, py::handle dmean, py::handle dvar,
                   const Arrays& arrays, py::handle token_mean, py::handle token_scale,
                   std::int64_t num_groups, double eps) {
  Call call("timestep_norm", frontend, queue);
  TimestepNormBackward op{inputs(call, arrays, num_groups, eps)};
  op.dy = call.strided_input("dy", dy);
  op.dmean = call.input("dmean", dmean);
  op.dvar = call.input("dvar", dvar);
  op.kept = {call.input("token_mean", token_mean), call.input("token_scale", token_scale)};
  const TimestepNormShape shape = validate(op);
  validate_backward(op, shape);
  op.dx = call.output_like("x", op.x);
  op.dweight = call.output_like("weight", op.weight);
  op.dbias = call.output_like("bias", op.bias);
  op.dinitial_mean = call.output_like("initial_mean", op.initial_mean);
  op.dinitial_var = call.output_like("initial_var", op.initial_var);
  return call.run(&Kernels::timestep_norm_backward, op, shape);
}

}  // namespace

void register_timestep_norm(py::module_& module) {
  using namespace py::literals;
  module.def(
      "timestep_norm_forward",
      [](const Frontend& frontend, Queue queue, py::handle x, py::handle weight, py::handle bias,
         py::handle initial_count, py::handle initial_mean, py::handle initial_var, py::handle cu_seqlens,
         py::handle padding_mask, std::int64_t num_groups, double eps, bool keep) {
        return forward(frontend, queue,
                       {x, weight, bias, initial_count, initial_mean, initial_var, cu_seqlens, padding_mask},
                       num_groups, eps, keep);
      },
      "frontend"_a, py::arg(kQueueName), "x"_a, "weight"_a, "bias"_a, "initial_count"_a, "initial_mean"_a,
      "initial_var"_a, "cu_seqlens"_a, "padding_mask"_a, "num_groups"_a, "eps"_a, "keep"_a = false,
      "-> (y, count, mean, var, token_mean and token_scale for backward if keep)");
  module.def(
      "timestep_norm_backward",
      [](const Frontend& frontend, Queue queue, py::handle dy, py::handle dmean, py::handle dvar,
         py::handle x, py::handle weight, py::handle bias, py::handle initial_count, py::handle initial_mean,
         py::handle initial_var, py::handle cu_seqlens, py::handle padding_mask, py::handle token_mean,
         py::handle token_scale, std::int64_t num_groups, double eps) {
        return backward(frontend, queue, dy, dmean, dvar,
                        {x, weight, bias, initial_count, initial_mean, initial_var, cu_seqlens, padding_mask},
                        token_mean, token_scale, num_groups, eps);
      },
      "frontend"_a, py::arg(kQueueName), "dy"_a, "dmean"_a, "dvar"_a, "x"_a, "weight"_a, "bias"_a,
      "initial_count"_a, "initial_mean"_a, "initial_var"_a, "cu_seqlens"_a, "padding_mask"_a, "token_mean"_a,
      "token_scale"_a, "num_groups"_a, "eps"_a,
      "-> (dx, dweight and dbias if weight, dinitial_mean and dinitial_var if initial_mean)");
}

}  // namespace megalodon::bindings
