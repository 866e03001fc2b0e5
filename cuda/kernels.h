// The CUDA backend as its callers see it: one table of operators. This header needs no CUDA.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "megalodon/ops/cema.h"
#include "megalodon/ops/chunk_attention.h"
#include "megalodon/ops/residual.h"
#include "megalodon/ops/timestep_norm.h"

namespace megalodon::cuda {

using Stream = void*;  // a cudaStream_t

// Device memory that belongs to one call, at least 256-byte aligned.
struct Workspace {
  void* data = nullptr;
  std::int64_t bytes = 0;
};

// The driver refused a launch, or the workspace is too small.
class LaunchError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// One direction of one operator, for a validated descriptor. `run` queues kernels on the stream and returns:
// it allocates nothing and waits for nothing. It writes every element of the outputs.
template <class Op, class Shape>
struct Entry {
  std::int64_t (*workspace_bytes)(const Op&, const Shape&) = nullptr;
  void (*run)(const Op&, const Shape&, Stream stream, Workspace workspace) = nullptr;

  explicit operator bool() const { return run != nullptr; }
};

// What this backend has. An empty entry is an operator without a kernel.
struct KernelTable {
  Entry<CemaForward, CemaShape> cema_forward;
  Entry<CemaBackward, CemaShape> cema_backward;
  Entry<CemaCoefficientsForward, CemaShape> cema_coefficients_forward;
  Entry<CemaCoefficientsBackward, CemaShape> cema_coefficients_backward;
  Entry<TimestepNormForward, TimestepNormShape> timestep_norm_forward;
  Entry<TimestepNormBackward, TimestepNormShape> timestep_norm_backward;
  Entry<ChunkAttentionForward, AttentionShape> chunk_attention_forward;
  Entry<ChunkAttentionBackward, AttentionShape> chunk_attention_backward;
  Entry<NormalizedAttentionForward, AttentionShape> normalized_attention_forward;
  Entry<NormalizedAttentionBackward, AttentionShape> normalized_attention_backward;
  Entry<NormForward, RowShape> norm_forward;
  Entry<NormBackward, RowShape> norm_backward;
  Entry<SiluMulForward, RowShape> silu_mul_forward;
  Entry<SiluMulBackward, RowShape> silu_mul_backward;
  Entry<TwoHopResidualForward, RowShape> two_hop_residual_forward;
  Entry<TwoHopResidualBackward, RowShape> two_hop_residual_backward;
};

const KernelTable& kernels();

}  // namespace megalodon::cuda
