// The operators: each queues its kernels on a Run. They are defined in ops/<op>/<op>.cu.
#pragma once

#include "kernels.h"

namespace megalodon::cuda {

class Run;

void cema_forward(const CemaForward& op, const CemaShape& shape, Run& run);
void cema_backward(const CemaBackward& op, const CemaShape& shape, Run& run);
void cema_coefficients_forward(const CemaCoefficientsForward& op, const CemaShape& shape, Run& run);
void cema_coefficients_backward(const CemaCoefficientsBackward& op, const CemaShape& shape, Run& run);
void timestep_norm_forward(const TimestepNormForward& op, const TimestepNormShape& shape, Run& run);
void timestep_norm_backward(const TimestepNormBackward& op, const TimestepNormShape& shape, Run& run);
void chunk_attention_forward(const ChunkAttentionForward& op, const AttentionShape& shape, Run& run);
void chunk_attention_backward(const ChunkAttentionBackward& op, const AttentionShape& shape, Run& run);
void normalized_attention_forward(const NormalizedAttentionForward& op, const AttentionShape& shape,
                                  Run& run);
void normalized_attention_backward(const NormalizedAttentionBackward& op, const AttentionShape& shape,
                                   Run& run);
void norm_forward(const NormForward& op, const RowShape& shape, Run& run);
void norm_backward(const NormBackward& op, const RowShape& shape, Run& run);
void silu_mul_forward(const SiluMulForward& op, const RowShape& shape, Run& run);
void silu_mul_backward(const SiluMulBackward& op, const RowShape& shape, Run& run);
void two_hop_residual_forward(const TwoHopResidualForward& op, const RowShape& shape, Run& run);
void two_hop_residual_backward(const TwoHopResidualBackward& op, const RowShape& shape, Run& run);

}  // namespace megalodon::cuda
