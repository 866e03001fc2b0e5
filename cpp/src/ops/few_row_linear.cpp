#include "megalodon/ops/few_row_linear.h"

namespace megalodon {

void validate(const FewRowLinear& op) {
  const Check check("few_row_linear", "x", op.x);
  if (op.x.rank < 1 || op.x.size(-1) < 1) {
    check.fail("x", "shape (..., I) with I >= 1", shape_string(op.x));
  }
  check.contiguous("x", op.x);
  check.exact("weight", op.weight, op.x.dtype, {-1, op.x.size(-1)});
  if (op.x.numel() > kFewRows * op.x.size(-1)) {
    check.fail("x", "at most " + std::to_string(kFewRows) + " rows", shape_string(op.x));
  }
  if (op.bias.defined()) check.exact("bias", op.bias, op.x.dtype, {op.weight.size(0)});
}

}  // namespace megalodon
