#include "common/column_sums.cuh"
#include "common/width.cuh"
#include "ops/chunk_attention/backward.cuh"
#include "ops/chunk_attention/decode.cuh"
#include "ops/chunk_attention/rotary.cuh"
#include "ops/chunk_attention/tiled.cuh"
#include "ops/operators.h"

namespace megalodon::cuda {
namespace {

constexpr std::int64_t kRotaryParts = 256;  // of sums of dgamma and dbeta

template <class T>
AttentionArgs<T> common_args(const Attention& op, const AttentionShape& shape, const Sequences& sequences) {
  using A = Acc<T>;
  AttentionArgs<T> args{.v = heads<const T>(op.v, "v"),
                        .initial_k = elements<const A>(op.initial_k, "initial_k"),
                        .initial_v = elements<const A>(op.initial_v, "initial_v"),
                        .initial_length = elements<const std::int64_t>(op.initial_length, "initial_length"),
                        .head_count = shape.heads,
                        .key_dim = shape.key_dim,
                        .value_dim = shape.value_dim,
                        .capacity = shape.initial_capacity,
                        .final_capacity = shape.capacity,
                        .chunk = op.chunk_size,
                        .scale = 1,
                        .threshold = math::dropout_threshold(op.dropout_p),
                        .seed_low = static_cast<std::uint32_t>(op.seed),
                        .seed_high = static_cast<std::uint32_t>(op.seed >> 32)};
  args.tiles.sequences = sequences;
  return args;
}

// y and the final state, of q and k as they are.
template <class T>
void forward(const AttentionOutputs& out, const AttentionShape& shape, AttentionArgs<T> args, Run& run,
             const SequenceInputs& sequence) {
  using A = Acc<T>;
  args.y = heads<T>(out.y, "y");
  if constexpr (kTiled<T>) {
    tiled_outputs(run, args, shape);
  } else {
    simple_outputs(run, args);
  }
  clear_padding(run, sequence, args.y.data, shape.heads * shape.value_dim);
  args.final_capacity = out.final_k.size(1);  // a donated state may have more room than it needs
  const FinalArgs<T> last{args, elements<A>(out.final_k, "state.k"), elements<A>(out.final_v, "state.v"),
                          elements<std::int64_t>(out.final_length, "state.length")};
  const std::int64_t slots = shape.count * std::max<std::int64_t>(args.final_capacity, 1) * shape.heads;
  run.launch(final_state<T>, {divide_up(slots, kStateThreads / kWarp)}, kStateThreads, 0, last);
}

// dq, dk and dv of q and k as they are.
template <class T, class Out>
void backward(const AttentionCotangents& from, const AttentionGradients& to, const AttentionShape& shape,
              AttentionArgs<T> args, Heads<Out> dq, Heads<Out> dk, Run& run) {
  using A = Acc<T>;
  args.dy = heads<const T>(from.dy, "dy");
  const Gradients<T, Out> gradients{dq,
                                    dk,
                                    heads<T>(to.dv, "dv"),
                                    elements<A>(to.dinitial_k, "dinitial_k"),
                                    elements<A>(to.dinitial_v, "dinitial_v"),
                                    elements<const A>(from.dfinal_k, "dfinal_k"),
                                    elements<const A>(from.dfinal_v, "dfinal_v")};
  if constexpr (kTiled<T>) {
    tiled_gradients(run, args, shape, gradients);
  } else {
    simple_gradients(run, args, shape, gradients);
  }
}

template <class T>
AttentionArgs<T> plain_args(const ChunkAttention& op, const AttentionShape& shape, Run& run) {
  AttentionArgs<T> args = common_args<T>(op, shape, resolve(run, op.sequence, shape));
  args.q = heads<const T>(op.q, "q");
  args.k = heads<const T>(op.k, "k");
  args.scale = static_cast<Acc<T>>(op.scale);
  return args;
}

// Queues the rotation of z: args.q and args.k become the queries and keys.
template <class T>
RotaryArgs<T> rotated(const NormalizedAttention& op, const AttentionShape& shape, const Sequences& sequences,
                      Run& run) {
  using A = Acc<T>;
  const std::int64_t size = shape.batch * shape.length * shape.heads * shape.key_dim;
  RotaryArgs<T> args{.tiles = divide(run, sequences, kRotaryWarps),
                     .z = heads<const T>(op.z, "z"),
                     .gamma = elements<const A>(op.gamma, "gamma"),
                     .beta = elements<const A>(op.beta, "beta"),
                     .initial_length = elements<const std::int64_t>(op.initial_length, "initial_length"),
                     .frequency = run.workspace<double>(shape.key_dim / 2),
                     .q = dense_heads(run.workspace<T>(size), shape.length, shape.heads, shape.key_dim),
                     .k = dense_heads(run.workspace<T>(size), shape.length, shape.heads, shape.key_dim),
                     .head_count = shape.heads,
                     .dim = shape.key_dim,
                     .chunk = op.chunk_size,
                     .base = op.rope_base,
                     .eps = static_cast<A>(op.eps)};
  run.launch(rope_frequencies<T>, {divide_up(shape.key_dim / 2, kFrequencyThreads)}, kFrequencyThreads, 0,
             args);
  run.launch(rotate<T>, {args.tiles.count, shape.heads}, kRotaryWarps * kWarp, 0, args);
  return args;
}

template <class T>
AttentionArgs<T> normalized_args(const NormalizedAttention& op, const AttentionShape& shape,
                                 const Sequences& sequences, const RotaryArgs<T>& rotary) {
  AttentionArgs<T> args = common_args<T>(op, shape, sequences);
  args.q = constant(rotary.q);
  args.k = constant(rotary.k);
  return args;
}

template <class T>
void normalized_forward(const NormalizedAttentionForward& op, const AttentionShape& shape, Run& run) {
  const Sequences sequences = resolve(run, op.sequence, shape);
  const RotaryArgs<T> rotary = rotated<T>(op, shape, sequences, run);
  forward(op, shape, normalized_args<T>(op, shape, sequences, rotary), run, op.sequence);
}

template <class T>
void normalized_backward(const NormalizedAttentionBackward& op, const AttentionShape& shape, Run& run) {
  using A = Acc<T>;
  const Sequences sequences = resolve(run, op.sequence, shape);
  RotaryArgs<T> rotary = rotated<T>(op, shape, sequences, run);
  const AttentionArgs<T> args = normalized_args<T>(op, shape, sequences, rotary);
  const std::int64_t size = shape.batch * shape.length * shape.heads * shape.key_dim;
  rotary.dq = dense_heads(run.workspace<A>(size), shape.length, shape.heads, shape.key_dim);
  rotary.dk = dense_heads(run.workspace<A>(size), shape.length, shape.heads, shape.key_dim);
  backward(op, op, shape, args, rotary.dq, rotary.dk, run);

  const std::int64_t parts = std::min(rotary.tiles.count, kRotaryParts),
                     columns = 2 * shape.heads * shape.key_dim;
  rotary.dz = heads<T>(op.dz, "dz");
  rotary.dgamma = run.workspace<A>(parts * columns);
  rotary.dbeta = run.workspace<A>(parts * columns);
  run.launch(rotate_back<T>, {parts, shape.heads}, kRotaryWarps * kWarp,
             shared_size<RotaryRow<A>>(kRotaryWarps), rotary);
  finish_columns<A>(run, rotary.dgamma, elements<A>(op.dgamma, "dgamma"), parts, columns);
  finish_columns<A>(run, rotary.dbeta, elements<A>(op.dbeta, "dbeta"), parts, columns);
  clear_padding(run, op.sequence, rotary.dz.data, shape.heads * shape.key_dim);
  clear_padding(run, op.sequence, elements<T>(op.dv, "dv"), shape.heads * shape.value_dim);
}

// What a decoded token needs of either operator.
template <class T>
DecodeArgs<T> decode_args(const Attention& op, const AttentionOutputs& out, const AttentionShape& shape,
                          Run& run) {
  using A = Acc<T>;
  const std::int64_t final_capacity = out.final_k.size(1);  // a donated state may have more than it needs
  const bool donated = op.initial_k.defined() && out.final_k.data == op.initial_k.data;
  return {
      .sequences = resolve(run, op.sequence, shape),
      .v = heads<const T>(op.v, "v"),
      .initial_length = elements<const std::int64_t>(op.initial_length, "initial_length"),
      .keys = {elements<const A>(op.initial_k, "initial_k"), elements<A>(out.final_k, "k"), shape.key_dim},
      .values = {elements<const A>(op.initial_v, "initial_v"), elements<A>(out.final_v, "v"),
                 shape.value_dim},
      .final_length = elements<std::int64_t>(out.final_length, "length"),
      .y = heads<T>(out.y, "y"),
      .head_count = shape.heads,
      .capacity = shape.initial_capacity,
      .final_capacity = final_capacity,
      .chunk = op.chunk_size,
      .slices = divide_up(std::max(shape.initial_capacity + 1, final_capacity), kSliceKeys),
      .in_place = donated && out.final_k.numel() > 0,
      .threshold = math::dropout_threshold(op.dropout_p),
      .seed_low = static_cast<std::uint32_t>(op.seed),
      .seed_high = static_cast<std::uint32_t>(op.seed >> 32)};
}

// One token per sequence.
template <class T>
void decode(const Attention& op, const AttentionOutputs& out, const AttentionShape& shape,
            const DecodeArgs<T>& args, Run& run) {
  constexpr int width = kWidest<Acc<T>>;
  const bool wide = shape.key_dim % width == 0 && shape.value_dim % width == 0 &&
                    aligned(width, {&op.initial_k, &op.initial_v, &out.final_k, &out.final_v});
  with_width<Acc<T>>(wide, [&](auto vector) { run_decode<vector>(run, args); });
  clear_padding(run, op.sequence, args.y.data, shape.heads * shape.value_dim);
}

}  // namespace

void chunk_attention_forward(const ChunkAttentionForward& op, const AttentionShape& shape, Run& run) {
  with_storage(op.v.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    if (shape.length > 1) return forward(op, shape, plain_args<T>(op, shape, run), run, op.sequence);
    DecodeArgs<T> args = decode_args<T>(op, op, shape, run);
    args.q = heads<const T>(op.q, "q");
    args.k = heads<const T>(op.k, "k");
    args.scale = static_cast<Acc<T>>(op.scale);
    decode(op, op, shape, args, run);
  });
}

void chunk_attention_backward(const ChunkAttentionBackward& op, const AttentionShape& shape, Run& run) {
  with_storage(op.v.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    backward(op, op, shape, plain_args<T>(op, shape, run), heads<T>(op.dq, "dq"), heads<T>(op.dk, "dk"), run);
    clear_padding(run, op.sequence, elements<T>(op.dq, "dq"), shape.heads * shape.key_dim);
    clear_padding(run, op.sequence, elements<T>(op.dk, "dk"), shape.heads * shape.key_dim);
    clear_padding(run, op.sequence, elements<T>(op.dv, "dv"), shape.heads * shape.value_dim);
  });
}

void normalized_attention_forward(const NormalizedAttentionForward& op, const AttentionShape& shape,
                                  Run& run) {
  with_storage(op.v.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    if (shape.length > 1) return normalized_forward<T>(op, shape, run);
    DecodeArgs<T> args = decode_args<T>(op, op, shape, run);
    args.q = heads<const T>(op.z, "z");
    args.gamma = elements<const Acc<T>>(op.gamma, "gamma");
    args.beta = elements<const Acc<T>>(op.beta, "beta");
    args.base = op.rope_base;
    args.eps = static_cast<Acc<T>>(op.eps);
    args.scale = 1;
    decode(op, op, shape, args, run);
  });
}

void normalized_attention_backward(const NormalizedAttentionBackward& op, const AttentionShape& shape,
                                   Run& run) {
  with_storage(op.v.dtype, [&](auto* storage) {
    normalized_backward<std::remove_pointer_t<decltype(storage)>>(op, shape, run);
  });
}

}  // namespace megalodon::cuda
