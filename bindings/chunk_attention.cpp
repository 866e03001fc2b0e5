#include "bindings.h"
#include "cpu/kernels.h"

namespace megalodon::bindings {
namespace {

// The arguments that both operators end with, in the order of the Python call.
struct Shared {
  Tensor initial_k, initial_v, initial_length, cu_seqlens, padding_mask;
  std::int64_t chunk_size;
  double dropout_p;
  std::uint64_t seed;

  Attention with(const Tensor& v) const {
    return {v, initial_k, initial_v, initial_length, {cu_seqlens, padding_mask}, chunk_size, dropout_p, seed};
  }
};

void allocate_outputs(Outputs& outputs, AttentionOutputs& to, const Attention& op,
                      const AttentionShape& shape) {
  const DType state = parameter_dtype(op.v.dtype);
  to.y = outputs.add_like("y", op.v);
  to.final_k = outputs.add("state.k", state, {shape.count, shape.capacity, shape.heads, shape.key_dim});
  to.final_v = outputs.add("state.v", state, {shape.count, shape.capacity, shape.heads, shape.value_dim});
  to.final_length = outputs.add("state.length", DType::int64, {shape.count});
}

void allocate_gradients(Outputs& outputs, AttentionGradients& to, const Attention& op) {
  to.dv = outputs.add_like("v", op.v);
  to.dinitial_k = outputs.add_like("initial_state.k", op.initial_k);
  to.dinitial_v = outputs.add_like("initial_state.v", op.initial_v);
}

py::tuple chunk_forward(py::function allocate, int threads, const Tensor& q, const Tensor& k, const Tensor& v,
                        const Shared& shared, double scale) {
  ChunkAttentionForward op{{shared.with(v), q, k, scale}, {}};
  const AttentionShape shape = validate(op);
  Outputs outputs("chunk_attention", std::move(allocate));
  allocate_outputs(outputs, op, op, shape);
  run([&] {
    cpu::kernels().chunk_attention_forward(op, cpu::SequenceList(op.sequence, shape).span(), threads);
  });
  return outputs.take();
}

py::tuple chunk_backward(py::function allocate, int threads, const AttentionCotangents& cotangents,
                         const Tensor& q, const Tensor& k, const Tensor& v, const Shared& shared,
                         double scale) {
  ChunkAttentionBackward op{{shared.with(v), q, k, scale}, cotangents, {}, {}, {}};
  const AttentionShape shape = validate(op);
  validate_cotangents(op, shape);
  Outputs outputs("chunk_attention", std::move(allocate));
  op.dq = outputs.add_like("q", q);
  op.dk = outputs.add_like("k", k);
  allocate_gradients(outputs, op, op);
  run([&] {
    cpu::kernels().chunk_attention_backward(op, cpu::SequenceList(op.sequence, shape).span(), threads);
  });
  return outputs.take();
}

py::tuple normalized_forward(py::function allocate, int threads, const Tensor& z, const Tensor& gamma,
                             const Tensor& beta, const Tensor& v, const Shared& shared, double rope_base,
                             double eps) {
  NormalizedAttentionForward op{{shared.with(v), z, gamma, beta, rope_base, eps}, {}};
  const AttentionShape shape = validate(op);
  Outputs outputs("normalized_attention", std::move(allocate));
  allocate_outputs(outputs, op, op, shape);
  run([&] {
    cpu::kernels().normalized_attention_forward(op, cpu::SequenceList(op.sequence, shape).span(), threads);
  });
  return outputs.take();
}

py::tuple normalized_backward(py::function allocate, int threads, const AttentionCotangents& cotangents,
                              const Tensor& z, const Tensor& gamma, const Tensor& beta, const Tensor& v,
                              const Shared& shared, double rope_base, double eps) {
  NormalizedAttentionBackward op{
      {shared.with(v), z, gamma, beta, rope_base, eps}, cotangents, {}, {}, {}, {}};
  const AttentionShape shape = validate(op);
  validate_cotangents(op, shape);
  Outputs outputs("normalized_attention", std::move(allocate));
  op.dz = outputs.add_like("z", z);
  op.dgamma = outputs.add_like("gamma", gamma);
  op.dbeta = outputs.add_like("beta", beta);
  allocate_gradients(outputs, op, op);
  run([&] {
    cpu::kernels().normalized_attention_backward(op, cpu::SequenceList(op.sequence, shape).span(), threads);
  });
  return outputs.take();
}

}  // namespace

void register_chunk_attention(py::module_& module) {
  using namespace py::literals;
  module.def(
      "chunk_attention_forward",
      [](py::function allocate, int threads, const Tensor& q, const Tensor& k, const Tensor& v,
         const Tensor& initial_k, const Tensor& initial_v, const Tensor& initial_length,
         const Tensor& cu_seqlens, const Tensor& padding_mask, std::int64_t chunk_size, double scale,
         double dropout_p, std::uint64_t seed) {
        return chunk_forward(
            std::move(allocate), threads, q, k, v,
            {initial_k, initial_v, initial_length, cu_seqlens, padding_mask, chunk_size, dropout_p, seed},
            scale);
      },
      "allocate"_a, "threads"_a, "q"_a, "k"_a, "v"_a, "initial_k"_a, "initial_v"_a, "initial_length"_a,
      "cu_seqlens"_a, "padding_mask"_a, "chunk_size"_a, "scale"_a, "dropout_p"_a, "seed"_a,
      "-> (y, k, v, length)");
  module.def(
      "chunk_attention_backward",
      [](py::function allocate, int threads, const Tensor& dy, const Tensor& dfinal_k, const Tensor& dfinal_v,
         const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& initial_k, const Tensor& initial_v,
         const Tensor& initial_length, const Tensor& cu_seqlens, const Tensor& padding_mask,
         std::int64_t chunk_size, double scale, double dropout_p, std::uint64_t seed) {
        return chunk_backward(
            std::move(allocate), threads, {dy, dfinal_k, dfinal_v}, q, k, v,
            {initial_k, initial_v, initial_length, cu_seqlens, padding_mask, chunk_size, dropout_p, seed},
            scale);
      },
      "allocate"_a, "threads"_a, "dy"_a, "dfinal_k"_a, "dfinal_v"_a, "q"_a, "k"_a, "v"_a, "initial_k"_a,
      "initial_v"_a, "initial_length"_a, "cu_seqlens"_a, "padding_mask"_a, "chunk_size"_a, "scale"_a,
      "dropout_p"_a, "seed"_a, "-> (dq, dk, dv, dinitial_k and dinitial_v if initial_k)");
  module.def(
      "normalized_attention_forward",
      [](py::function allocate, int threads, const Tensor& z, const Tensor& gamma, const Tensor& beta,
         const Tensor& v, const Tensor& initial_k, const Tensor& initial_v, const Tensor& initial_length,
         const Tensor& cu_seqlens, const Tensor& padding_mask, std::int64_t chunk_size, double rope_base,
         double eps, double dropout_p, std::uint64_t seed) {
        return normalized_forward(
            std::move(allocate), threads, z, gamma, beta, v,
            {initial_k, initial_v, initial_length, cu_seqlens, padding_mask, chunk_size, dropout_p, seed},
            rope_base, eps);
      },
      "allocate"_a, "threads"_a, "z"_a, "gamma"_a, "beta"_a, "v"_a, "initial_k"_a, "initial_v"_a,
      "initial_length"_a, "cu_seqlens"_a, "padding_mask"_a, "chunk_size"_a, "rope_base"_a, "eps"_a,
      "dropout_p"_a, "seed"_a, "-> (y, k, v, length)");
  module.def(
      "normalized_attention_backward",
      [](py::function allocate, int threads, const Tensor& dy, const Tensor& dfinal_k, const Tensor& dfinal_v,
         const Tensor& z, const Tensor& gamma, const Tensor& beta, const Tensor& v, const Tensor& initial_k,
         const Tensor& initial_v, const Tensor& initial_length, const Tensor& cu_seqlens,
         const Tensor& padding_mask, std::int64_t chunk_size, double rope_base, double eps, double dropout_p,
         std::uint64_t seed) {
        return normalized_backward(
            std::move(allocate), threads, {dy, dfinal_k, dfinal_v}, z, gamma, beta, v,
            {initial_k, initial_v, initial_length, cu_seqlens, padding_mask, chunk_size, dropout_p, seed},
            rope_base, eps);
      },
      "allocate"_a, "threads"_a, "dy"_a, "dfinal_k"_a, "dfinal_v"_a, "z"_a, "gamma"_a, "beta"_a, "v"_a,
      "initial_k"_a, "initial_v"_a, "initial_length"_a, "cu_seqlens"_a, "padding_mask"_a, "chunk_size"_a,
      "rope_base"_a, "eps"_a, "dropout_p"_a, "seed"_a,
      "-> (dz, dgamma, dbeta, dv, dinitial_k and dinitial_v if initial_k)");
}

}  // namespace megalodon::bindings
