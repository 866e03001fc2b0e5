#include "common/column_sums.cuh"
#include "common/width.cuh"
#include "ops/operators.h"
#include "ops/timestep_norm/gradients.cuh"
#include "ops/timestep_norm/statistics.cuh"

namespace megalodon::cuda {
namespace {

// V channels lie in one group, and every token starts where V of them may be accessed as one.
bool wide_tokens(int width, const TimestepNormShape& shape, std::initializer_list<const Tensor*> tokens) {
  for (const Tensor* tensor : tokens) {
    if (tensor->stride(0) % width != 0 || tensor->stride(1) % width != 0) return false;
  }
  return shape.dim / shape.groups % width == 0 && aligned(width, tokens);
}

// Calls f with the elements per access, and whether a team keeps its tokens in registers.
template <class T, class F>
void with_rows(const TimestepNormShape& shape, bool wide, const F& f) {
  const std::int64_t width = shape.dim / shape.groups;
  with_width<T>(wide, [&](auto vector) {
    if (team_of(width, vector) * vector >= width) {
      f(vector, std::true_type{});
    } else {
      f(vector, std::false_type{});
    }
  });
}

template <class T>
TimestepArgs<T> common_args(const TimestepNorm& op, const KeptStatistics& kept,
                            const TimestepNormShape& shape, int vector, Run& run) {
  using A = Acc<T>;
  TimestepArgs<T> args{.x = tokens<const T>(op.x, "x"),
                       .weight = elements<const A>(op.weight, "weight"),
                       .bias = elements<const A>(op.bias, "bias"),
                       .initial_count = elements<const std::int64_t>(op.initial_count, "initial_state.count"),
                       .initial_mean = elements<const A>(op.initial_mean, "initial_state.mean"),
                       .initial_var = elements<const A>(op.initial_var, "initial_state.var"),
                       .token_mean = elements<double>(kept.mean, "token_mean"),
                       .token_scale = elements<A>(kept.scale, "token_scale"),
                       .groups = shape.groups,
                       .width = shape.dim / shape.groups,
                       .team = team_of(shape.dim / shape.groups, vector),
                       .eps = op.eps};
  args.tiles = divide(run, resolve(run, op.sequence, shape), tile_tokens(args.team));
  return args;
}

// A block for every tile and group.
template <class T>
Blocks links_of(const TimestepArgs<T>& args) {
  return {args.tiles.count * args.groups};
}

// Whether a sequence may have more than one tile.
template <class T>
bool has_chains(const TimestepArgs<T>& args) {
  return args.tiles.sequences.length > args.tiles.size;
}

template <class T>
bool may_be_empty(const TimestepArgs<T>& args) {
  return args.tiles.sequences.offsets || args.tiles.sequences.lengths;
}

template <class T>
Blocks states_of(const TimestepArgs<T>& args) {
  return {divide_up(args.tiles.sequences.count * args.groups, kTimestepThreads)};
}

}  // namespace

void timestep_norm_forward(const TimestepNormForward& op, const TimestepNormShape& shape, Run& run) {
  with_storage(op.x.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    using A = Acc<T>;
    const bool wide =
        wide_tokens(kWidest<T>, shape, {&op.x, &op.y}) && aligned(kWidest<T>, {&op.weight, &op.bias});
    with_rows<T>(shape, wide, [&](auto vector, auto held) {
      NormalizeArgs<T> args{common_args<T>(op, op.kept, shape, vector, run), elements<T>(op.y, "y"),
                            elements<std::int64_t>(op.count, "count"), elements<A>(op.mean, "mean"),
                            elements<A>(op.var, "var")};
      if (has_chains(args)) args.statistics = make_chain<2>(run, links_of(args).x);
      run.launch(normalize<held, vector, T>, links_of(args), kTimestepThreads,
                 kTileMemoryBytes<A> + kRowsBytes<held, vector, T>, args);
      if (may_be_empty(args)) {
        run.launch(pass_state_through<T>, states_of(args), kTimestepThreads, 0, args);
      }
      if (op.kept.mean.defined() && op.sequence.padding_mask.defined()) {
        run.launch(clear_after<T>, {divide_up(op.kept.mean.numel(), kTimestepThreads)}, kTimestepThreads, 0,
                   args);
      }
    });
    clear_padding(run, op.sequence, elements<T>(op.y, "y"), shape.dim);
  });
}

void timestep_norm_backward(const TimestepNormBackward& op, const TimestepNormShape& shape, Run& run) {
  with_storage(op.x.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    using A = Acc<T>;
    const bool wide =
        wide_tokens(kWidest<T>, shape, {&op.x, &op.dy, &op.dx}) && aligned(kWidest<T>, {&op.weight});
    with_rows<T>(shape, wide, [&](auto vector, auto held) {
      GradientArgs<T> args{common_args<T>(op, op.kept, shape, vector, run)};
      const std::int64_t links = links_of(args).x, parts = args.tiles.count;
      if (has_chains(args)) args.terms = make_chain<3>(run, links);
      if (!op.kept.mean.defined()) {
        const std::int64_t tokens = shape.batch * shape.length * shape.groups;
        args.token_mean = run.workspace<double>(tokens);
        args.token_scale = run.workspace<A>(tokens);
        if (has_chains(args)) args.statistics = make_chain<2>(run, links);
        run.launch(normalize<held, vector, T>, {links}, kTimestepThreads,
                   kTileMemoryBytes<A> + kRowsBytes<held, vector, T>, NormalizeArgs<T>{args});
      }
      args.dy = tokens<const T>(op.dy, "dy");
      args.dmean = elements<const A>(op.dmean, "dmean");
      args.dvar = elements<const A>(op.dvar, "dvar");
      args.dx = elements<T>(op.dx, "dx");
      args.dinitial_mean = elements<A>(op.dinitial_mean, "dinitial_mean");
      args.dinitial_var = elements<A>(op.dinitial_var, "dinitial_var");
      if (op.dweight.defined()) args.dweight = run.workspace<A>(parts * shape.dim);
      if (op.dbias.defined()) args.dbias = run.workspace<A>(parts * shape.dim);
      run.launch(differentiate<held, vector, T>, {links}, kTimestepThreads,
                 kTileMemoryBytes<A> + 2 * kRowsBytes<held, vector, T>, args);
      if (may_be_empty(args)) {
        run.launch(pass_gradients_through<T>, states_of(args), kTimestepThreads, 0, args);
      }
      finish_columns<A>(run, args.dweight, elements<A>(op.dweight, "dweight"), parts, shape.dim);
      finish_columns<A>(run, args.dbias, elements<A>(op.dbias, "dbias"), parts, shape.dim);
    });
    clear_padding(run, op.sequence, elements<T>(op.dx, "dx"), shape.dim);
  });
}

}  // namespace megalodon::cuda
