// Compiles every kernel for one instruction set. The including file names it:
//   MEGALODON_TARGET        the namespace, and the name users see
//   MEGALODON_VECTOR_BYTES  width of a vector register
//   MEGALODON_REGISTERS     how many of them there are
#include "cpu/kernels/cema.h"
#include "cpu/kernels/cema_coefficients.h"
#include "cpu/kernels/chunk_attention.h"
#include "cpu/kernels/elementwise.h"
#include "cpu/kernels/few_row_linear.h"
#include "cpu/kernels/norm.h"
#include "cpu/kernels/timestep_norm.h"

namespace megalodon::cpu::MEGALODON_TARGET {

extern const KernelTable table;
const KernelTable table = {
    .isa = kIsa,
    .supported = supported,
    .cema_forward = cema_forward,
    .cema_backward = cema_backward,
    .cema_coefficients_forward = cema_coefficients_forward,
    .cema_coefficients_backward = cema_coefficients_backward,
    .timestep_norm_forward = timestep_norm_forward,
    .timestep_norm_backward = timestep_norm_backward,
    .chunk_attention_forward = chunk_attention_forward,
    .chunk_attention_backward = chunk_attention_backward,
    .normalized_attention_forward = normalized_attention_forward,
    .normalized_attention_backward = normalized_attention_backward,
    .norm_forward = norm_forward,
    .norm_backward = norm_backward,
    .silu_mul_forward = silu_mul_forward,
    .silu_mul_backward = silu_mul_backward,
    .two_hop_residual_forward = two_hop_residual_forward,
    .two_hop_residual_backward = two_hop_residual_backward,
    .few_row_linear = few_row_linear,
    .silu = silu,
};

}  // namespace megalodon::cpu::MEGALODON_TARGET
