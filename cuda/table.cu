// The list of what this backend has.
#include "common/entry.cuh"
#include "ops/operators.h"

namespace megalodon::cuda {

const KernelTable& kernels() {
  static constexpr KernelTable table = {
      .cema_forward = entry<cema_forward>,
      .cema_backward = entry<cema_backward>,
      .cema_coefficients_forward = entry<cema_coefficients_forward>,
      .cema_coefficients_backward = entry<cema_coefficients_backward>,
      .timestep_norm_forward = entry<timestep_norm_forward>,
      .timestep_norm_backward = entry<timestep_norm_backward>,
      .chunk_attention_forward = entry<chunk_attention_forward>,
      .chunk_attention_backward = entry<chunk_attention_backward>,
      .normalized_attention_forward = entry<normalized_attention_forward>,
      .normalized_attention_backward = entry<normalized_attention_backward>,
      .norm_forward = entry<norm_forward>,
      .norm_backward = entry<norm_backward>,
      .silu_mul_forward = entry<silu_mul_forward>,
      .silu_mul_backward = entry<silu_mul_backward>,
      .two_hop_residual_forward = entry<two_hop_residual_forward>,
      .two_hop_residual_backward = entry<two_hop_residual_backward>,
  };
  return table;
}

}  // namespace megalodon::cuda
