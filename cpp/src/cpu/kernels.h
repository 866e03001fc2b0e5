// The CPU backend: one table of kernels per instruction set, one of which is in use.
#pragma once

#include <string>
#include <vector>

#include "cpu/sequences.h"
#include "megalodon/ops/cema.h"
#include "megalodon/ops/chunk_attention.h"
#include "megalodon/ops/few_row_linear.h"
#include "megalodon/ops/residual.h"
#include "megalodon/ops/timestep_norm.h"

namespace megalodon::cpu {

// Every kernel takes a validated descriptor and writes every element of its outputs.
struct KernelTable {
  const char* isa;
  bool (*supported)();  // by the CPU that runs this process, if the narrower tables are

  void (*cema_forward)(const CemaForward&, const SequenceSpan&, int threads);
  void (*cema_backward)(const CemaBackward&, const SequenceSpan&, int threads);
  void (*cema_coefficients_forward)(const CemaCoefficientsForward&, int threads);
  void (*cema_coefficients_backward)(const CemaCoefficientsBackward&, int threads);
  void (*timestep_norm_forward)(const TimestepNormForward&, const SequenceSpan&, int threads);
  void (*timestep_norm_backward)(const TimestepNormBackward&, const SequenceSpan&, int threads);
  void (*chunk_attention_forward)(const ChunkAttentionForward&, const SequenceSpan&, int threads);
  void (*chunk_attention_backward)(const ChunkAttentionBackward&, const SequenceSpan&, int threads);
  void (*normalized_attention_forward)(const NormalizedAttentionForward&, const SequenceSpan&, int threads);
  void (*normalized_attention_backward)(const NormalizedAttentionBackward&, const SequenceSpan&, int threads);
  void (*norm_forward)(const NormForward&, int threads);
  void (*norm_backward)(const NormBackward&, int threads);
  void (*silu_mul_forward)(const SiluMulForward&, int threads);
  void (*silu_mul_backward)(const SiluMulBackward&, int threads);
  void (*two_hop_residual_forward)(const TwoHopResidualForward&, int threads);
  void (*two_hop_residual_backward)(const TwoHopResidualBackward&, int threads);
  void (*few_row_linear)(const FewRowLinear&, int threads);
  void (*silu)(const Silu&, int threads);
};

// The table in use. Chosen at the first call: MEGALODON_CORE_ISA if set, else the widest supported one.
const KernelTable& kernels();

std::vector<std::string> available_isas();  // narrowest first
void set_isa(const std::string& name);      // throws Error if it is not available
const char* last_isa();                     // the set that ran this thread's most recent kernel, or ""

// Called by every kernel of a target with the target's own name.
void record_isa(const char* name);

}  // namespace megalodon::cpu
