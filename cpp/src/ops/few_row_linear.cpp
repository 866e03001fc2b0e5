#include "megalodon/ops/few_row_linear.h"

namespace megalodon {

void validate(const FewRowLinear& op) {
  const Check check("few_row_linear", "x", op.x);
  if (op.x.rank != 2 || op.x.size(0) > kFewRows || op.x.size(1) < 1) {
    check.fail("x", "shape (R, I) with R <= " + std::to_string(kFewRows) + " and I >= 1", shape_string(op.x));
  }
  check.contiguous("x", op.x);
  check.exact("weight", op.weight, op.x.dtype, {-1, op.x.size(1)});
  if (op.bias.defined()) check.exact("bias", op.bias, op.x.dtype, {op.weight.size(0)});
}

}  // namespace megalodon
