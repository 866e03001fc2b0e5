#include "bindings.h"

namespace megalodon::bindings {
namespace {

py::tuple norm_forward(Call& call, NormForward op) {
  const RowShape shape = validate(op);
  op.y = call.output_like("y", op.x);
  return call.run(&Kernels::norm_forward, op, shape);
}

py::tuple norm_backward(Call& call, NormBackward op, py::handle dy) {
  const RowShape shape = validate(op);
  op.dy = call.input("dy", dy);
  validate_cotangents(op);
  op.dx = call.output_like(op.residual.defined() ? "branch" : "x", op.x);
  op.dweight = call.output_like("weight", op.weight);
  op.dbias = call.output_like("bias", op.bias);
  return call.run(&Kernels::norm_backward, op, shape);
}

Norm rms_norm(Call& call, py::handle x, py::handle weight, double eps) {
  return {call.op(), false, call.input("x", x), {}, call.input("weight", weight), {}, eps};
}

Norm layer_norm(Call& call, py::handle x, py::handle weight, py::handle bias, double eps) {
  return {call.op(), true, call.input("x", x), {}, call.input("weight", weight), call.input("bias", bias),
          eps};
}

Norm add_layer_norm(Call& call, py::handle branch, py::handle residual, py::handle weight, py::handle bias,
                    double eps) {
  return {call.op(),
          true,
          call.input("branch", branch),
          call.required_input("residual", residual),
          call.input("weight", weight),
          call.input("bias", bias),
          eps};
}

void register_rms_norm(py::module_& module) {
  using namespace py::literals;
  module.def(
      "rms_norm_forward",
      [](const Frontend& frontend, Queue queue, py::handle x, py::handle weight, double eps) {
        Call call("rms_norm", frontend, queue);
        return norm_forward(call, {rms_norm(call, x, weight, eps), {}});
      },
      "frontend"_a, py::arg(kQueueName), "x"_a, "weight"_a, "eps"_a, "-> (y,)");
  module.def(
      "rms_norm_backward",
      [](const Frontend& frontend, Queue queue, py::handle dy, py::handle x, py::handle weight, double eps) {
        Call call("rms_norm", frontend, queue);
        return norm_backward(call, {rms_norm(call, x, weight, eps), {}, {}, {}, {}}, dy);
      },
      "frontend"_a, py::arg(kQueueName), "dy"_a, "x"_a, "weight"_a, "eps"_a, "-> (dx, dweight if weight)");
}

void register_layer_norm(py::module_& module) {
  using namespace py::literals;
  module.def(
      "layer_norm_forward",
      [](const Frontend& frontend, Queue queue, py::handle x, py::handle weight, py::handle bias,
         double eps) {
        Call call("layer_norm", frontend, queue);
        return norm_forward(call, {layer_norm(call, x, weight, bias, eps), {}});
      },
      "frontend"_a, py::arg(kQueueName), "x"_a, "weight"_a, "bias"_a, "eps"_a, "-> (y,)");
  module.def(
      "layer_norm_backward",
      [](const Frontend& frontend, Queue queue, py::handle dy, py::handle x, py::handle weight,
         py::handle bias, double eps) {
        Call call("layer_norm", frontend, queue);
        return norm_backward(call, {layer_norm(call, x, weight, bias, eps), {}, {}, {}, {}}, dy);
      },
      "frontend"_a, py::arg(kQueueName), "dy"_a, "x"_a, "weight"_a, "bias"_a, "eps"_a,
      "-> (dx, dweight and dbias if weight)");
}

void register_add_layer_norm(py::module_& module) {
  using namespace py::literals;
  module.def(
      "add_layer_norm_forward",
      [](const Frontend& frontend, Queue queue, py::handle branch, py::handle residual, py::handle weight,
         py::handle bias, double eps) {
        Call call("add_layer_norm", frontend, queue);
        return norm_forward(call, {add_layer_norm(call, branch, residual, weight, bias, eps), {}});
      },
      "frontend"_a, py::arg(kQueueName), "branch"_a, "residual"_a, "weight"_a, "bias"_a, "eps"_a, "-> (y,)");
  module.def(
      "add_layer_norm_backward",
      [](const Frontend& frontend, Queue queue, py::handle dy, py::handle branch, py::handle residual,
         py::handle weight, py::handle bias, double eps) {
        Call call("add_layer_norm", frontend, queue);
        return norm_backward(call,
                             {add_layer_norm(call, branch, residual, weight, bias, eps), {}, {}, {}, {}}, dy);
      },
      "frontend"_a, py::arg(kQueueName), "dy"_a, "branch"_a, "residual"_a, "weight"_a, "bias"_a, "eps"_a,
      "-> (dbranch, dweight and dbias if weight); dresidual = dbranch");
}

SiluMul silu_mul(Call& call, py::handle gate, py::handle value) {
  return {call.input("gate", gate), call.input("value", value)};
}

py::tuple silu_mul_forward(const Frontend& frontend, Queue queue, py::handle gate, py::handle value) {
  Call call("silu_mul", frontend, queue);
  SiluMulForward op{silu_mul(call, gate, value), {}};
  const RowShape shape = validate(op);
  op.y = call.output_like("y", op.gate);
  return call.run(&Kernels::silu_mul_forward, op, shape);
}

py::tuple silu_mul_backward(const Frontend& frontend, Queue queue, py::handle dy, py::handle gate,
                            py::handle value) {
  Call call("silu_mul", frontend, queue);
  SiluMulBackward op{silu_mul(call, gate, value), call.input("dy", dy), {}, {}};
  const RowShape shape = validate(op);
  validate_cotangents(op);
  op.dgate = call.output_like("gate", op.gate);
  op.dvalue = call.output_like("value", op.value);
  return call.run(&Kernels::silu_mul_backward, op, shape);
}

TwoHopResidual two_hop_residual(Call& call, py::handle branch, py::handle residual, py::handle alpha) {
  return {call.input("branch", branch), call.input("residual", residual), call.input("alpha", alpha)};
}

py::tuple two_hop_residual_forward(const Frontend& frontend, Queue queue, py::handle branch,
                                   py::handle residual, py::handle alpha) {
  Call call("two_hop_residual", frontend, queue);
  TwoHopResidualForward op{two_hop_residual(call, branch, residual, alpha), {}};
  const RowShape shape = validate(op);
  op.y = call.output_like("y", op.branch);
  return call.run(&Kernels::two_hop_residual_forward, op, shape);
}

py::tuple two_hop_residual_backward(const Frontend& frontend, Queue queue, py::handle dy, py::handle branch,
                                    py::handle residual, py::handle alpha) {
  Call call("two_hop_residual", frontend, queue);
  TwoHopResidualBackward op{two_hop_residual(call, branch, residual, alpha), call.input("dy", dy), {}, {}};
  const RowShape shape = validate(op);
  validate_cotangents(op);
  op.dbranch = call.output_like("branch", op.branch);
  op.dalpha = call.output_like("alpha", op.alpha);
  return call.run(&Kernels::two_hop_residual_backward, op, shape);
}

}  // namespace

void register_residual(py::module_& module) {
  using namespace py::literals;
  register_rms_norm(module);
  register_layer_norm(module);
  register_add_layer_norm(module);
  module.def("silu_mul_forward", silu_mul_forward, "frontend"_a, py::arg(kQueueName), "gate"_a, "value"_a,
             "-> (y,)");
  module.def("silu_mul_backward", silu_mul_backward, "frontend"_a, py::arg(kQueueName), "dy"_a, "gate"_a,
             "value"_a, "-> (dgate, dvalue)");
  module.def("two_hop_residual_forward", two_hop_residual_forward, "frontend"_a, py::arg(kQueueName),
             "branch"_a, "residual"_a, "alpha"_a, "-> (y,)");
  module.def("two_hop_residual_backward", two_hop_residual_backward, "frontend"_a, py::arg(kQueueName),
             "dy"_a, "branch"_a, "residual"_a, "alpha"_a, "-> (dbranch, dalpha if alpha); dresidual = dy");
}

}  // namespace megalodon::bindings
