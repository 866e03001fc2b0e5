#include "bindings.h"
#include "cpu/kernels.h"

namespace megalodon::bindings {
namespace {

py::tuple forward(CemaForward op, py::function allocate, int threads) {
  const CemaShape shape = validate(op);
  Outputs outputs(op.name, std::move(allocate));
  op.y = outputs.add("y", op.x.dtype, {shape.batch, shape.length, shape.dim});
  op.state = op.real ? outputs.add("state", op.p.dtype, {shape.count, shape.dim, shape.ndim})
                     : outputs.add("state", op.p.dtype, {shape.count, shape.dim, shape.ndim, 2});
  run([&] { cpu::kernels().cema_forward(op, cpu::SequenceList(op.sequence, shape).span(), threads); });
  return outputs.take();
}

py::tuple backward(CemaBackward op, py::function allocate, int threads) {
  const CemaShape shape = validate(op);
  validate_cotangents(op, shape);
  Outputs outputs(op.name, std::move(allocate));
  op.dx = outputs.add_like("x", op.x);
  op.dp = outputs.add_like("p", op.p);
  op.dq = outputs.add_like("q", op.q);
  op.dgamma = outputs.add_like("gamma", op.gamma);
  op.domega = outputs.add_like("omega", op.omega);
  op.dinitial_state = outputs.add_like("initial_state", op.initial_state);
  run([&] { cpu::kernels().cema_backward(op, cpu::SequenceList(op.sequence, shape).span(), threads); });
  return outputs.take();
}

Cema inputs(bool real, const Tensor& x, const Tensor& p, const Tensor& q, const Tensor& gamma,
            const Tensor& omega, const Tensor& initial_state, const Tensor& cu_seqlens,
            const Tensor& padding_mask) {
  return {real ? "ema" : "cema", real, x, p, q, gamma, omega, initial_state, {cu_seqlens, padding_mask}};
}

void register_moving_average(py::module_& module, const std::string& op, bool real) {
  using namespace py::literals;
  module.def(
      (op + "_forward").c_str(),
      [real](py::function allocate, int threads, const Tensor& x, const Tensor& p, const Tensor& q,
             const Tensor& gamma, const Tensor& omega, const Tensor& initial_state, const Tensor& cu_seqlens,
             const Tensor& padding_mask) {
        return forward({inputs(real, x, p, q, gamma, omega, initial_state, cu_seqlens, padding_mask), {}, {}},
                       std::move(allocate), threads);
      },
      "allocate"_a, "threads"_a, "x"_a, "p"_a, "q"_a, "gamma"_a, "omega"_a, "initial_state"_a, "cu_seqlens"_a,
      "padding_mask"_a, "-> (y, state)");
  module.def(
      (op + "_backward").c_str(),
      [real](py::function allocate, int threads, const Tensor& dy, const Tensor& dstate, const Tensor& x,
             const Tensor& p, const Tensor& q, const Tensor& gamma, const Tensor& omega,
             const Tensor& initial_state, const Tensor& cu_seqlens, const Tensor& padding_mask) {
        CemaBackward op_backward{
            inputs(real, x, p, q, gamma, omega, initial_state, cu_seqlens, padding_mask)};
        op_backward.dy = dy;
        op_backward.dstate = dstate;
        return backward(op_backward, std::move(allocate), threads);
      },
      "allocate"_a, "threads"_a, "dy"_a, "dstate"_a, "x"_a, "p"_a, "q"_a, "gamma"_a, "omega"_a,
      "initial_state"_a, "cu_seqlens"_a, "padding_mask"_a,
      "-> (dx, dp, dq, dgamma, domega if omega, dinitial_state if initial_state)");
}

py::tuple coefficients_forward(py::function allocate, int threads, const Tensor& alpha, const Tensor& delta,
                               const Tensor& theta) {
  CemaCoefficientsForward op{{alpha, delta, theta}, {}, {}};
  const CemaShape shape = validate(op);
  Outputs outputs("cema_coefficients", std::move(allocate));
  op.p = outputs.add_like("p", alpha);
  op.q = outputs.add("q", alpha.dtype, {shape.dim, shape.ndim, 2});
  run([&] { cpu::kernels().cema_coefficients_forward(op, threads); });
  return outputs.take();
}

py::tuple coefficients_backward(py::function allocate, int threads, const Tensor& dp, const Tensor& dq,
                                const Tensor& alpha, const Tensor& delta, const Tensor& theta) {
  CemaCoefficientsBackward op{{alpha, delta, theta}, dp, dq, {}, {}, {}};
  validate_cotangents(op, validate(op));
  Outputs outputs("cema_coefficients", std::move(allocate));
  op.dalpha = outputs.add_like("alpha", alpha);
  op.ddelta = outputs.add_like("delta", delta);
  op.dtheta = outputs.add_like("theta", theta);
  run([&] { cpu::kernels().cema_coefficients_backward(op, threads); });
  return outputs.take();
}

}  // namespace

void register_cema(py::module_& module) {
  using namespace py::literals;
  register_moving_average(module, "cema", false);
  register_moving_average(module, "ema", true);
  module.def("cema_coefficients_forward", coefficients_forward, "allocate"_a, "threads"_a, "alpha"_a,
             "delta"_a, "theta"_a, "-> (p, q)");
  module.def("cema_coefficients_backward", coefficients_backward, "allocate"_a, "threads"_a, "dp"_a, "dq"_a,
             "alpha"_a, "delta"_a, "theta"_a, "-> (dalpha, ddelta, dtheta)");
}

}  // namespace megalodon::bindings
