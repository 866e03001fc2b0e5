#include "bindings.h"

namespace megalodon::bindings {
namespace {

// The arguments that both operators end with, in the order of the Python functions.
struct Shared {
  py::handle initial_k, initial_v, initial_length, cu_seqlens, padding_mask;
  std::int64_t chunk_size;
  double dropout_p;
  std::uint64_t seed;
  bool donate_state = false;
};

struct Cotangents {
  py::handle dy, dfinal_k, dfinal_v;
};

Attention attention(Call& call, const Tensor& v, const Shared& shared) {
  return {v,
          call.input("initial_k", shared.initial_k),
          call.input("initial_v", shared.initial_v),
          call.input("initial_length", shared.initial_length),
          {call.input("cu_seqlens", shared.cu_seqlens), call.input("padding_mask", shared.padding_mask)},
          shared.chunk_size,
          shared.dropout_p,
          shared.seed};
}

ChunkAttention plain(Call& call, py::handle q, py::handle k, py::handle v, const Shared& shared,
                     double scale) {
  const Tensor queries = call.strided_input("q", q), keys = call.strided_input("k", k);
  return {attention(call, call.strided_input("v", v), shared), queries, keys, scale};
}

NormalizedAttention normalized(Call& call, py::handle z, py::handle gamma, py::handle beta, py::handle v,
                               const Shared& shared, double rope_base, double eps) {
  const Tensor shared_z = call.strided_input("z", z);
  const Tensor scales = call.input("gamma", gamma), shifts = call.input("beta", beta);
  return {attention(call, call.strided_input("v", v), shared), shared_z, scales, shifts, rope_base, eps};
}

AttentionCotangents read(Call& call, const Cotangents& given) {
  return {call.strided_input("dy", given.dy), call.input("dk", given.dfinal_k),
          call.input("dv", given.dfinal_v)};
}

// Whether two contiguous arrays have an element in common.
bool overlap(const Tensor& a, const Tensor& b) {
  const auto begin = [](const Tensor& x) { return reinterpret_cast<std::uintptr_t>(x.data); };
  const auto end = [&](const Tensor& x) {
    return begin(x) + static_cast<std::uintptr_t>(x.numel() * item_size(x.dtype));
  };
  return begin(a) < end(b) && begin(b) < end(a);
}

// A donated state of full capacity becomes the final one; a smaller one is replaced by one of full capacity.
void allocate_outputs(Call& call, AttentionOutputs& to, const Attention& op, const Shared& shared,
                      AttentionShape shape) {
  const DType state = parameter_dtype(op.v.dtype);
  if (shared.donate_state) shape.capacity = op.chunk_size - 1;
  to.y = call.output_like("y", op.v);
  if (shared.donate_state && op.initial_k.defined() && shape.initial_capacity == shape.capacity) {
    if (overlap(op.initial_k, op.initial_v)) {
      throw Error(Error::Kind::value, call.op(), "initial_state.v", "memory of its own to donate",
                  "that of initial_state.k");
    }
    to.final_k = call.output_in_place("initial_state.k", shared.initial_k, op.initial_k);
    to.final_v = call.output_in_place("initial_state.v", shared.initial_v, op.initial_v);
  } else {
    to.final_k = call.output("state.k", state, {shape.count, shape.capacity, shape.heads, shape.key_dim});
    to.final_v = call.output("state.v", state, {shape.count, shape.capacity, shape.heads, shape.value_dim});
  }
  to.final_length = call.output("state.length", DType::int64, {shape.count});
}

void allocate_gradients(Call& call, AttentionGradients& to, const Attention& op) {
  to.dv = call.output_like("v", op.v);
  to.dinitial_k = call.output_like("initial_state.k", op.initial_k);
  to.dinitial_v = call.output_like("initial_state.v", op.initial_v);
}

py::tuple chunk_forward(const Frontend& frontend, Queue queue, py::handle q, py::handle k, py::handle v,
                        const Shared& shared, double scale) {
  Call call("chunk_attention", frontend, queue);
  ChunkAttentionForward op{plain(call, q, k, v, shared, scale), {}};
  const AttentionShape shape = validate(op);
  allocate_outputs(call, op, op, shared, shape);
  return call.run(&Kernels::chunk_attention_forward, op, shape);
}

py::tuple chunk_backward(const Frontend& frontend, Queue queue, const Cotangents& cotangents, py::handle q,
                         py::handle k, py::handle v, const Shared& shared, double scale) {
  Call call("chunk_attention", frontend, queue);
  ChunkAttentionBackward op{plain(call, q, k, v, shared, scale), read(call, cotangents), {}, {}, {}};
  const AttentionShape shape = validate(op);
  validate_cotangents(op, shape);
  op.dq = call.output_like("q", op.q);
  op.dk = call.output_like("k", op.k);
  allocate_gradients(call, op, op);
  return call.run(&Kernels::chunk_attention_backward, op, shape);
}

py::tuple normalized_forward(const Frontend& frontend, Queue queue, py::handle z, py::handle gamma,
                             py::handle beta, py::handle v, const Shared& shared, double rope_base,
                             double eps) {
  Call call("normalized_attention", frontend, queue);
  NormalizedAttentionForward op{normalized(call, z, gamma, beta, v, shared, rope_base, eps), {}};
  const AttentionShape shape = validate(op);
  allocate_outputs(call, op, op, shared, shape);
  return call.run(&Kernels::normalized_attention_forward, op, shape);
}

py::tuple normalized_backward(const Frontend& frontend, Queue queue, const Cotangents& cotangents,
                              py::handle z, py::handle gamma, py::handle beta, py::handle v,
                              const Shared& shared, double rope_base, double eps) {
  Call call("normalized_attention", frontend, queue);
  NormalizedAttentionBackward op{
      normalized(call, z, gamma, beta, v, shared, rope_base, eps), read(call, cotangents), {}, {}, {}, {}};
  const AttentionShape shape = validate(op);
  validate_cotangents(op, shape);
  op.dz = call.output_like("z", op.z);
  op.dgamma = call.output_like("gamma", op.gamma);
  op.dbeta = call.output_like("beta", op.beta);
  allocate_gradients(call, op, op);
  return call.run(&Kernels::normalized_attention_backward, op, shape);
}

}  // namespace

void register_chunk_attention(py::module_& module) {
  using namespace py::literals;
  module.def(
      "chunk_attention_forward",
      [](const Frontend& frontend, Queue queue, py::handle q, py::handle k, py::handle v,
         py::handle initial_k, py::handle initial_v, py::handle initial_length, py::handle cu_seqlens,
         py::handle padding_mask, std::int64_t chunk_size, double scale, double dropout_p, std::uint64_t seed,
         bool donate_state) {
        return chunk_forward(frontend, queue, q, k, v,
                             {initial_k, initial_v, initial_length, cu_seqlens, padding_mask, chunk_size,
                              dropout_p, seed, donate_state},
                             scale);
      },
      "frontend"_a, py::arg(kQueueName), "q"_a, "k"_a, "v"_a, "initial_k"_a, "initial_v"_a,
      "initial_length"_a, "cu_seqlens"_a, "padding_mask"_a, "chunk_size"_a, "scale"_a, "dropout_p"_a,
      "seed"_a, "donate_state"_a = false, "-> (y, k, v, length)");
  module.def(
      "chunk_attention_backward",
      [](const Frontend& frontend, Queue queue, py::handle dy, py::handle dfinal_k, py::handle dfinal_v,
         py::handle q, py::handle k, py::handle v, py::handle initial_k, py::handle initial_v,
         py::handle initial_length, py::handle cu_seqlens, py::handle padding_mask, std::int64_t chunk_size,
         double scale, double dropout_p, std::uint64_t seed) {
        return chunk_backward(
            frontend, queue, {dy, dfinal_k, dfinal_v}, q, k, v,
            {initial_k, initial_v, initial_length, cu_seqlens, padding_mask, chunk_size, dropout_p, seed},
            scale);
      },
      "frontend"_a, py::arg(kQueueName), "dy"_a, "dfinal_k"_a, "dfinal_v"_a, "q"_a, "k"_a, "v"_a,
      "initial_k"_a, "initial_v"_a, "initial_length"_a, "cu_seqlens"_a, "padding_mask"_a, "chunk_size"_a,
      "scale"_a, "dropout_p"_a, "seed"_a, "-> (dq, dk, dv, dinitial_k and dinitial_v if initial_k)");
  module.def(
      "normalized_attention_forward",
      [](const Frontend& frontend, Queue queue, py::handle z, py::handle gamma, py::handle beta, py::handle v,
         py::handle initial_k, py::handle initial_v, py::handle initial_length, py::handle cu_seqlens,
         py::handle padding_mask, std::int64_t chunk_size, double rope_base, double eps, double dropout_p,
         std::uint64_t seed, bool donate_state) {
        return normalized_forward(frontend, queue, z, gamma, beta, v,
                                  {initial_k, initial_v, initial_length, cu_seqlens, padding_mask, chunk_size,
                                   dropout_p, seed, donate_state},
                                  rope_base, eps);
      },
      "frontend"_a, py::arg(kQueueName), "z"_a, "gamma"_a, "beta"_a, "v"_a, "initial_k"_a, "initial_v"_a,
      "initial_length"_a, "cu_seqlens"_a, "padding_mask"_a, "chunk_size"_a, "rope_base"_a, "eps"_a,
      "dropout_p"_a, "seed"_a, "donate_state"_a = false, "-> (y, k, v, length)");
  module.def(
      "normalized_attention_backward",
      [](const Frontend& frontend, Queue queue, py::handle dy, py::handle dfinal_k, py::handle dfinal_v,
         py::handle z, py::handle gamma, py::handle beta, py::handle v, py::handle initial_k,
         py::handle initial_v, py::handle initial_length, py::handle cu_seqlens, py::handle padding_mask,
         std::int64_t chunk_size, double rope_base, double eps, double dropout_p, std::uint64_t seed) {
        return normalized_backward(
            frontend, queue, {dy, dfinal_k, dfinal_v}, z, gamma, beta, v,
            {initial_k, initial_v, initial_length, cu_seqlens, padding_mask, chunk_size, dropout_p, seed},
            rope_base, eps);
      },
      "frontend"_a, py::arg(kQueueName), "dy"_a, "dfinal_k"_a, "dfinal_v"_a, "z"_a, "gamma"_a, "beta"_a,
      "v"_a, "initial_k"_a, "initial_v"_a, "initial_length"_a, "cu_seqlens"_a, "padding_mask"_a,
      "chunk_size"_a, "rope_base"_a, "eps"_a, "dropout_p"_a, "seed"_a,
      "-> (dz, dgamma, dbeta, dv, dinitial_k and dinitial_v if initial_k)");
}

}  // namespace megalodon::bindings
