#include "bindings.h"
#include "cpu/kernels.h"

namespace megalodon::bindings {
namespace {

py::tuple norm_forward(NormForward op, py::function allocate, int threads) {
  validate(op);
  Outputs outputs(op.name, std::move(allocate));
  op.y = outputs.add_like("y", op.x);
  run([&] { cpu::kernels().norm_forward(op, threads); });
  return outputs.take();
}

py::tuple norm_backward(NormBackward op, py::function allocate, int threads) {
  validate(op);
  validate_cotangents(op);
  Outputs outputs(op.name, std::move(allocate));
  op.dx = outputs.add_like(op.residual.defined() ? "branch" : "x", op.x);
  op.dweight = outputs.add_like("weight", op.weight);
  op.dbias = outputs.add_like("bias", op.bias);
  run([&] { cpu::kernels().norm_backward(op, threads); });
  return outputs.take();
}

void register_rms_norm(py::module_& module) {
  using namespace py::literals;
  module.def(
      "rms_norm_forward",
      [](py::function allocate, int threads, const Tensor& x, const Tensor& weight, double eps) {
        return norm_forward({{"rms_norm", false, x, {}, weight, {}, eps}, {}}, std::move(allocate), threads);
      },
      "allocate"_a, "threads"_a, "x"_a, "weight"_a, "eps"_a, "-> (y,)");
  module.def(
      "rms_norm_backward",
      [](py::function allocate, int threads, const Tensor& dy, const Tensor& x, const Tensor& weight,
         double eps) {
        return norm_backward({{"rms_norm", false, x, {}, weight, {}, eps}, dy, {}, {}, {}},
                             std::move(allocate), threads);
      },
      "allocate"_a, "threads"_a, "dy"_a, "x"_a, "weight"_a, "eps"_a, "-> (dx, dweight if weight)");
}

void register_layer_norm(py::module_& module) {
  using namespace py::literals;
  module.def(
      "layer_norm_forward",
      [](py::function allocate, int threads, const Tensor& x, const Tensor& weight, const Tensor& bias,
         double eps) {
        return norm_forward({{"layer_norm", true, x, {}, weight, bias, eps}, {}}, std::move(allocate),
                            threads);
      },
      "allocate"_a, "threads"_a, "x"_a, "weight"_a, "bias"_a, "eps"_a, "-> (y,)");
  module.def(
      "layer_norm_backward",
      [](py::function allocate, int threads, const Tensor& dy, const Tensor& x, const Tensor& weight,
         const Tensor& bias, double eps) {
        return norm_backward({{"layer_norm", true, x, {}, weight, bias, eps}, dy, {}, {}, {}},
                             std::move(allocate), threads);
      },
      "allocate"_a, "threads"_a, "dy"_a, "x"_a, "weight"_a, "bias"_a, "eps"_a,
      "-> (dx, dweight and dbias if weight)");
}

void register_add_layer_norm(py::module_& module) {
  using namespace py::literals;
  module.def(
      "add_layer_norm_forward",
      [](py::function allocate, int threads, const Tensor& branch, const Tensor& residual,
         const Tensor& weight, const Tensor& bias, double eps) {
        return norm_forward({{"add_layer_norm", true, branch, residual, weight, bias, eps}, {}},
                            std::move(allocate), threads);
      },
      "allocate"_a, "threads"_a, "branch"_a, "residual"_a, "weight"_a, "bias"_a, "eps"_a, "-> (y,)");
  module.def(
      "add_layer_norm_backward",
      [](py::function allocate, int threads, const Tensor& dy, const Tensor& branch, const Tensor& residual,
         const Tensor& weight, const Tensor& bias, double eps) {
        return norm_backward({{"add_layer_norm", true, branch, residual, weight, bias, eps}, dy, {}, {}, {}},
                             std::move(allocate), threads);
      },
      "allocate"_a, "threads"_a, "dy"_a, "branch"_a, "residual"_a, "weight"_a, "bias"_a, "eps"_a,
      "-> (dbranch, dweight and dbias if weight); dresidual = dbranch");
}

py::tuple silu_mul_forward(py::function allocate, int threads, const Tensor& gate, const Tensor& value) {
  SiluMulForward op{{gate, value}, {}};
  validate(op);
  Outputs outputs("silu_mul", std::move(allocate));
  op.y = outputs.add_like("y", gate);
  run([&] { cpu::kernels().silu_mul_forward(op, threads); });
  return outputs.take();
}

py::tuple silu_mul_backward(py::function allocate, int threads, const Tensor& dy, const Tensor& gate,
                            const Tensor& value) {
  SiluMulBackward op{{gate, value}, dy, {}, {}};
  validate(op);
  validate_cotangents(op);
  Outputs outputs("silu_mul", std::move(allocate));
  op.dgate = outputs.add_like("gate", gate);
  op.dvalue = outputs.add_like("value", value);
  run([&] { cpu::kernels().silu_mul_backward(op, threads); });
  return outputs.take();
}

py::tuple two_hop_residual_forward(py::function allocate, int threads, const Tensor& branch,
                                   const Tensor& residual, const Tensor& alpha) {
  TwoHopResidualForward op{{branch, residual, alpha}, {}};
  validate(op);
  Outputs outputs("two_hop_residual", std::move(allocate));
  op.y = outputs.add_like("y", branch);
  run([&] { cpu::kernels().two_hop_residual_forward(op, threads); });
  return outputs.take();
}

py::tuple two_hop_residual_backward(py::function allocate, int threads, const Tensor& dy,
                                    const Tensor& branch, const Tensor& residual, const Tensor& alpha) {
  TwoHopResidualBackward op{{branch, residual, alpha}, dy, {}, {}};
  validate(op);
  validate_cotangents(op);
  Outputs outputs("two_hop_residual", std::move(allocate));
  op.dbranch = outputs.add_like("branch", branch);
  op.dalpha = outputs.add_like("alpha", alpha);
  run([&] { cpu::kernels().two_hop_residual_backward(op, threads); });
  return outputs.take();
}

}  // namespace

void register_residual(py::module_& module) {
  using namespace py::literals;
  register_rms_norm(module);
  register_layer_norm(module);
  register_add_layer_norm(module);
  module.def("silu_mul_forward", silu_mul_forward, "allocate"_a, "threads"_a, "gate"_a, "value"_a, "-> (y,)");
  module.def("silu_mul_backward", silu_mul_backward, "allocate"_a, "threads"_a, "dy"_a, "gate"_a, "value"_a,
             "-> (dgate, dvalue)");
  module.def("two_hop_residual_forward", two_hop_residual_forward, "allocate"_a, "threads"_a, "branch"_a,
             "residual"_a, "alpha"_a, "-> (y,)");
  module.def("two_hop_residual_backward", two_hop_residual_backward, "allocate"_a, "threads"_a, "dy"_a,
             "branch"_a, "residual"_a, "alpha"_a, "-> (dbranch, dalpha if alpha); dresidual = dy");
}

}  // namespace megalodon::bindings
