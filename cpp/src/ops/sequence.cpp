#include "megalodon/ops/sequence.h"

namespace megalodon {
namespace {

template <class Index>
void validate_offsets(const Check& check, const Tensor& cu_seqlens, std::int64_t length) {
  const Index* offset = cu_seqlens.as<const Index>();
  const std::int64_t last = cu_seqlens.size(0) - 1;
  if (offset[0] != 0) check.fail("cu_seqlens", "0 as the first offset", std::to_string(offset[0]));
  for (std::int64_t i = 0; i < last; ++i) {
    if (offset[i + 1] < offset[i]) {
      check.fail("cu_seqlens", "non-decreasing offsets",
                 std::to_string(offset[i]) + " followed by " + std::to_string(offset[i + 1]));
    }
  }
  if (offset[last] != length) {
    check.fail("cu_seqlens", "the length " + std::to_string(length) + " as the last offset",
               std::to_string(offset[last]));
  }
}

}  // namespace

SequenceShape validate(const Check& check, const SequenceInputs& inputs, std::int64_t batch,
                       std::int64_t length) {
  const Tensor& cu_seqlens = inputs.cu_seqlens;
  const Tensor& mask = inputs.padding_mask;
  if (!cu_seqlens.defined()) {
    if (mask.defined()) check.exact("padding_mask", mask, DType::boolean, {batch, length});
    return {batch, length, batch};
  }
  if (mask.defined()) check.fail("padding_mask", "None, because cu_seqlens is given", "an array");
  if (batch != 1) check.fail("cu_seqlens", "a batch of 1 (packed documents)", std::to_string(batch));
  if (cu_seqlens.dtype != DType::int32 && cu_seqlens.dtype != DType::int64) {
    check.fail_type("cu_seqlens", "int32 or int64", name(cu_seqlens.dtype));
  }
  if (cu_seqlens.rank != 1 || cu_seqlens.size(0) < 2) {
    check.fail("cu_seqlens", "shape (n + 1,) with n >= 1", shape_string(cu_seqlens));
  }
  check.exact("cu_seqlens", cu_seqlens, cu_seqlens.dtype, {-1});
  if (cu_seqlens.device.type == DeviceType::cpu) {
    if (cu_seqlens.dtype == DType::int32) {
      validate_offsets<std::int32_t>(check, cu_seqlens, length);
    } else {
      validate_offsets<std::int64_t>(check, cu_seqlens, length);
    }
  }
  return {batch, length, cu_seqlens.size(0) - 1};
}

}  // namespace megalodon
