#include "bindings.h"
#include "cpu/kernels.h"

namespace megalodon::bindings {
namespace {

TimestepNorm inputs(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& initial_count,
                    const Tensor& initial_mean, const Tensor& initial_var, const Tensor& cu_seqlens,
                    const Tensor& padding_mask, std::int64_t num_groups, double eps) {
  return {x,          weight, bias, initial_count, initial_mean, initial_var, {cu_seqlens, padding_mask},
          num_groups, eps};
}

py::tuple forward(py::function allocate, int threads, const Tensor& x, const Tensor& weight,
                  const Tensor& bias, const Tensor& initial_count, const Tensor& initial_mean,
                  const Tensor& initial_var, const Tensor& cu_seqlens, const Tensor& padding_mask,
                  std::int64_t num_groups, double eps) {
  TimestepNormForward op{inputs(x, weight, bias, initial_count, initial_mean, initial_var, cu_seqlens,
                                padding_mask, num_groups, eps)};
  const TimestepNormShape shape = validate(op);
  const DType statistic = parameter_dtype(x.dtype);
  Outputs outputs("timestep_norm", std::move(allocate));
  op.y = outputs.add_like("y", x);
  op.count = outputs.add("count", DType::int64, {shape.count});
  op.mean = outputs.add("mean", statistic, {shape.count, shape.groups});
  op.var = outputs.add("var", statistic, {shape.count, shape.groups});
  run([&] {
    cpu::kernels().timestep_norm_forward(op, cpu::SequenceList(op.sequence, shape).span(), threads);
  });
  return outputs.take();
}

py::tuple backward(py::function allocate, int threads, const Tensor& dy, const Tensor& dmean,
                   const Tensor& dvar, const Tensor& x, const Tensor& weight, const Tensor& bias,
                   const Tensor& initial_count, const Tensor& initial_mean, const Tensor& initial_var,
                   const Tensor& cu_seqlens, const Tensor& padding_mask, std::int64_t num_groups,
                   double eps) {
  TimestepNormBackward op{inputs(x, weight, bias, initial_count, initial_mean, initial_var, cu_seqlens,
                                 padding_mask, num_groups, eps)};
  op.dy = dy;
  op.dmean = dmean;
  op.dvar = dvar;
  const TimestepNormShape shape = validate(op);
  validate_cotangents(op, shape);
  Outputs outputs("timestep_norm", std::move(allocate));
  op.dx = outputs.add_like("x", x);
  op.dweight = outputs.add_like("weight", weight);
  op.dbias = outputs.add_like("bias", bias);
  op.dinitial_mean = outputs.add_like("initial_mean", initial_mean);
  op.dinitial_var = outputs.add_like("initial_var", initial_var);
  run([&] {
    cpu::kernels().timestep_norm_backward(op, cpu::SequenceList(op.sequence, shape).span(), threads);
  });
  return outputs.take();
}

}  // namespace

void register_timestep_norm(py::module_& module) {
  using namespace py::literals;
  module.def("timestep_norm_forward", forward, "allocate"_a, "threads"_a, "x"_a, "weight"_a, "bias"_a,
             "initial_count"_a, "initial_mean"_a, "initial_var"_a, "cu_seqlens"_a, "padding_mask"_a,
             "num_groups"_a, "eps"_a, "-> (y, count, mean, var)");
  module.def("timestep_norm_backward", backward, "allocate"_a, "threads"_a, "dy"_a, "dmean"_a, "dvar"_a,
             "x"_a, "weight"_a, "bias"_a, "initial_count"_a, "initial_mean"_a, "initial_var"_a,
             "cu_seqlens"_a, "padding_mask"_a, "num_groups"_a, "eps"_a,
             "-> (dx, dweight and dbias if weight, dinitial_mean and dinitial_var if initial_mean)");
}

}  // namespace megalodon::bindings
