#include "bindings.h"

namespace megalodon::bindings {
namespace {

// The arrays of a forward call, in the order of the Python function.
struct Arrays {
  py::handle x, p, q, gamma, omega, initial_state, cu_seqlens, padding_mask;
};

const char* op_name(bool real) { return real ? "ema" : "cema"; }

Cema inputs(Call& call, bool real, const Arrays& arrays) {
  return {call.op(),
          real,
          call.strided_input("x", arrays.x),
          call.input("p", arrays.p),
          call.input("q", arrays.q),
          call.input("gamma", arrays.gamma),
          call.input("omega", arrays.omega),
          call.input("initial_state", arrays.initial_state),
          {call.input("cu_seqlens", arrays.cu_seqlens), call.input("padding_mask", arrays.padding_mask)}};
}

py::tuple forward(bool real, const Frontend& frontend, Queue queue, const Arrays& arrays) {
  Call call(op_name(real), frontend, queue);
  CemaForward op{inputs(call, real, arrays), {}, {}};
  const CemaShape shape = validate(op);
  op.y = call.output("y", op.x.dtype, {shape.batch, shape.length, shape.dim});
  op.state = real ? call.output("state", op.p.dtype, {shape.count, shape.dim, shape.ndim})
                  : call.output("state", op.p.dtype, {shape.count, shape.dim, shape.ndim, 2});
  return call.run(&Kernels::cema_forward, op, shape);
}

py::tuple backward(bool real, const Frontend& frontend, Queue queue, py::handle dy, py::handle dstate,
                   const Arrays& arrays) {
  Call call(op_name(real), frontend, queue);
  CemaBackward op{inputs(call, real, arrays)};
  op.dy = call.strided_input("dy", dy);
  op.dstate = call.input("dstate", dstate);
  const CemaShape shape = validate(op);
  validate_cotangents(op, shape);
  op.dx = call.output_like("x", op.x);
  op.dp = call.output_like("p", op.p);
  op.dq = call.output_like("q", op.q);
  op.dgamma = call.output_like("gamma", op.gamma);
  op.domega = call.output_like("omega", op.omega);
  op.dinitial_state = call.output_like("initial_state", op.initial_state);
  return call.run(&Kernels::cema_backward, op, shape);
}

void register_moving_average(py::module_& module, bool real) {
  using namespace py::literals;
  const std::string op = op_name(real);
  module.def((op + "_forward").c_str(),
             [real](const Frontend& frontend, Queue queue, py::handle x, py::handle p, py::handle q,
                    py::handle gamma, py::handle omega, py::handle initial_state, py::handle cu_seqlens,
                    py::handle padding_mask) {
               return forward(real, frontend, queue,
                              {x, p, q, gamma, omega, initial_state, cu_seqlens, padding_mask});
             },
             "frontend"_a, py::arg(kQueueName), "x"_a, "p"_a, "q"_a, "gamma"_a, "omega"_a, "initial_state"_a,
             "cu_seqlens"_a, "padding_mask"_a, "-> (y, state)");
  module.def((op + "_backward").c_str(),
             [real](const Frontend& frontend, Queue queue, py::handle dy, py::handle dstate, py::handle x,
                    py::handle p, py::handle q, py::handle gamma, py::handle omega, py::handle initial_state,
                    py::handle cu_seqlens, py::handle padding_mask) {
               return backward(real, frontend, queue, dy, dstate,
                               {x, p, q, gamma, omega, initial_state, cu_seqlens, padding_mask});
             },
             "frontend"_a, py::arg(kQueueName), "dy"_a, "dstate"_a, "x"_a, "p"_a, "q"_a, "gamma"_a, "omega"_a,
             "initial_state"_a, "cu_seqlens"_a, "padding_mask"_a,
             "-> (dx, dp, dq, dgamma, domega if omega, dinitial_state if initial_state)");
}

CemaCoefficients coefficients(Call& call, py::handle alpha, py::handle delta, py::handle theta) {
  return {call.input("alpha", alpha), call.input("delta", delta), call.input("theta", theta)};
}

py::tuple coefficients_forward(const Frontend& frontend, Queue queue, py::handle alpha, py::handle delta,
                               py::handle theta) {
  Call call("cema_coefficients", frontend, queue);
  CemaCoefficientsForward op{coefficients(call, alpha, delta, theta), {}, {}};
  const CemaShape shape = validate(op);
  op.p = call.output_like("p", op.alpha);
  op.q = call.output("q", op.alpha.dtype, {shape.dim, shape.ndim, 2});
  return call.run(&Kernels::cema_coefficients_forward, op, shape);
}

py::tuple coefficients_backward(const Frontend& frontend, Queue queue, py::handle dp, py::handle dq,
                                py::handle alpha, py::handle delta, py::handle theta) {
  Call call("cema_coefficients", frontend, queue);
  CemaCoefficientsBackward op{coefficients(call, alpha, delta, theta)};
  op.dp = call.input("dp", dp);
  op.dq = call.input("dq", dq);
  const CemaShape shape = validate(op);
  validate_cotangents(op, shape);
  op.dalpha = call.output_like("alpha", op.alpha);
  op.ddelta = call.output_like("delta", op.delta);
  op.dtheta = call.output_like("theta", op.theta);
  return call.run(&Kernels::cema_coefficients_backward, op, shape);
}

}  // namespace

void register_cema(py::module_& module) {
  using namespace py::literals;
  register_moving_average(module, false);
  register_moving_average(module, true);
  module.def("cema_coefficients_forward", coefficients_forward, "frontend"_a, py::arg(kQueueName), "alpha"_a,
             "delta"_a, "theta"_a, "-> (p, q)");
  module.def("cema_coefficients_backward", coefficients_backward, "frontend"_a, py::arg(kQueueName), "dp"_a,
             "dq"_a, "alpha"_a, "delta"_a, "theta"_a, "-> (dalpha, ddelta, dtheta)");
}

}  // namespace megalodon::bindings
