#include "bindings.h"

namespace megalodon::bindings {

void register_silu(py::module_& module) {
  using namespace py::literals;
  module.def(
      "silu",
      [](const Frontend& frontend, Queue queue, py::handle x) {
        Call call("silu", frontend, queue);
        Silu op{call.input("x", x), {}};
        const RowShape shape = validate(op);
        op.y = call.output_like("y", op.x);
        return call.run(&Kernels::silu, op, shape);
      },
      "frontend"_a, py::arg(kQueueName), "x"_a, "-> (y,)");
}

}  // namespace megalodon::bindings
