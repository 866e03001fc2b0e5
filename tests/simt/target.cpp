// The table of CUDA kernels in the place of an instruction set: every operator and frontend of the CPU
// backend, and with them all their tests, run over the interpreter.
#include <cstring>
#include <memory>
#include <stdexcept>

#include "cpu/kernels.h"
#include "kernels.h"

namespace megalodon::cpu::simt {
namespace {

constexpr const char* kName = "simt";

// Workspace starts as NaN and is exactly as large as the operator asked for.
template <class Op, class Shape>
void call(const cuda::Entry<Op, Shape>& entry, const Op& op, const Shape& shape) {
  record_isa(kName);
  if (!entry) throw std::runtime_error("there is no CUDA kernel of this operator");
  const std::int64_t bytes = entry.workspace_bytes(op, shape);
  const std::unique_ptr<void, decltype(&std::free)> memory(
      std::aligned_alloc(256, static_cast<std::size_t>(bytes)), &std::free);
  if (memory == nullptr && bytes > 0) throw std::bad_alloc();
  std::memset(memory.get(), 0xFF, static_cast<std::size_t>(bytes));
  entry.run(op, shape, nullptr, {memory.get(), bytes});
}

// The entry of the table for the CPU: a sequence operator's takes its list of sequences too.
template <auto kEntry, class Op>
void rows(const Op& op, int) {
  call(cuda::kernels().*kEntry, op, validate(op));
}
template <auto kEntry, class Op>
void tokens(const Op& op, const SequenceSpan&, int) {
  call(cuda::kernels().*kEntry, op, validate(op));
}

template <class Op>
void on_cpus_only(const Op&, int) {
  throw std::runtime_error("of the CPU alone");
}

using Table = cuda::KernelTable;

}  // namespace

extern const KernelTable table;
const KernelTable table = {
    .isa = kName,
    .supported = [] { return true; },
    .cema_forward = tokens<&Table::cema_forward>,
    .cema_backward = tokens<&Table::cema_backward>,
    .cema_coefficients_forward = rows<&Table::cema_coefficients_forward>,
    .cema_coefficients_backward = rows<&Table::cema_coefficients_backward>,
    .timestep_norm_forward = tokens<&Table::timestep_norm_forward>,
    .timestep_norm_backward = tokens<&Table::timestep_norm_backward>,
    .chunk_attention_forward = tokens<&Table::chunk_attention_forward>,
    .chunk_attention_backward = tokens<&Table::chunk_attention_backward>,
    .normalized_attention_forward = tokens<&Table::normalized_attention_forward>,
    .normalized_attention_backward = tokens<&Table::normalized_attention_backward>,
    .norm_forward = rows<&Table::norm_forward>,
    .norm_backward = rows<&Table::norm_backward>,
    .silu_mul_forward = rows<&Table::silu_mul_forward>,
    .silu_mul_backward = rows<&Table::silu_mul_backward>,
    .two_hop_residual_forward = rows<&Table::two_hop_residual_forward>,
    .two_hop_residual_backward = rows<&Table::two_hop_residual_backward>,
    .few_row_linear = on_cpus_only<FewRowLinear>,
    .silu = on_cpus_only<Silu>,
};

}  // namespace megalodon::cpu::simt
