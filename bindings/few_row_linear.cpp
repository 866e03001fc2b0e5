#include "megalodon/ops/few_row_linear.h"

#include "bindings.h"

namespace megalodon::bindings {

void register_few_row_linear(py::module_& module) {
  using namespace py::literals;
  module.attr("few_rows") = kFewRows;
  module.def(
      "few_row_linear",
      [](const Frontend& frontend, Queue queue, py::handle x, py::handle weight, py::handle bias) {
        Call call("few_row_linear", frontend, queue);
        FewRowLinear op{call.input("x", x), call.input("weight", weight), call.input("bias", bias), {}};
        validate(op);
        std::array<std::int64_t, kMaxRank> sizes = op.x.sizes;
        sizes[static_cast<std::size_t>(op.x.rank - 1)] = op.weight.size(0);
        op.y = call.output("y", op.x.dtype, op.x.rank, sizes.data());
        return call.run(&Kernels::few_row_linear, op, nullptr);
      },
      "frontend"_a, py::arg(kQueueName), "x"_a, "weight"_a, "bias"_a, "-> (y,)");
}

}  // namespace megalodon::bindings
