#include "common/column_sums.cuh"
#include "common/width.cuh"
#include "ops/operators.h"
#include "ops/timestep_norm/apply.cuh"
#include "ops/timestep_norm/backward.cuh"
#include "ops/timestep_norm/statistics.cuh"

namespace megalodon::cuda {
namespace {

constexpr std::int64_t kTokenBlocks = 2048;  // whose blocks walk tokens
constexpr std::int64_t kMostParts = 512;     // of sums of parameters' gradients
constexpr std::int64_t kWarps = kStatisticsThreads / kWarp;

std::int64_t pairs(std::int64_t rows, const TimestepNormShape& shape) { return rows * shape.groups * 2; }

// Queues the four steps; statistics.token then holds mean_t and rsqrt(var_t + eps).
template <class T>
StatisticsArgs<T> find_statistics(const TimestepNorm& op, const TimestepNormShape& shape, Run& run,
                                  const TimestepNormForward* forward) {
  using A = Acc<T>;
  StatisticsArgs<T> args{.tiles = divide(run, resolve(run, op.sequence, shape), kStatisticsTile),
                         .x = tokens<const T>(op.x, "x"),
                         .initial_count = elements<const std::int64_t>(op.initial_count, "initial_count"),
                         .initial_mean = elements<const A>(op.initial_mean, "initial_mean"),
                         .initial_var = elements<const A>(op.initial_var, "initial_var"),
                         .batch = shape.batch,
                         .groups = shape.groups,
                         .width = shape.dim / shape.groups,
                         .eps = op.eps};
  if (forward != nullptr) {
    args.count = elements<std::int64_t>(forward->count, "count");
    args.mean = elements<A>(forward->mean, "mean");
    args.var = elements<A>(forward->var, "var");
  }
  args.token = run.workspace<double>(pairs(shape.batch * shape.length, shape));
  args.tile = run.workspace<double>(pairs(args.tiles.count, shape));
  const Blocks tile_blocks{divide_up(args.tiles.count * shape.groups, kStatisticsThreads)};
  run.launch(token_statistics<T>, {divide_up(shape.batch * shape.length * shape.groups, kWarps)},
             kStatisticsThreads, 0, args);
  run.launch(tile_statistics<T>, tile_blocks, kStatisticsThreads, 0, args);
  run.launch(carry_statistics<T>, {divide_up(shape.count * shape.groups, kStatisticsThreads)},
             kStatisticsThreads, 0, args);
  run.launch(running_statistics<T>, tile_blocks, kStatisticsThreads, 0, args);
  return args;
}

template <class T>
ApplyArgs<T> apply_args(const TimestepNorm& op, const TimestepNormShape& shape, Global<double> statistics) {
  return {.x = tokens<const T>(op.x, "x"),
          .weight = elements<const Acc<T>>(op.weight, "weight"),
          .bias = elements<const Acc<T>>(op.bias, "bias"),
          .padding = elements<const std::uint8_t>(op.sequence.padding_mask, "padding_mask"),
          .statistics = statistics,
          .batch = shape.batch,
          .length = shape.length,
          .groups = shape.groups,
          .width = shape.dim / shape.groups};
}

// V channels lie in one group, and every token starts where V of them may be accessed as one.
bool wide_tokens(int width, const TimestepNormShape& shape, std::initializer_list<const Tensor*> tokens) {
  for (const Tensor* tensor : tokens) {
    if (tensor->stride(0) % width != 0 || tensor->stride(1) % width != 0) return false;
  }
  return shape.dim / shape.groups % width == 0 && aligned(width, tokens);
}

std::int64_t column_blocks(std::int64_t dim, int width) {
  return divide_up(dim, std::int64_t{width} * kApplyThreads);
}

template <class T>
void find_terms(const TimestepNormBackward& op, const TimestepNormShape& shape, Run& run,
                const StatisticsArgs<T>& statistics, Global<double> token) {
  using A = Acc<T>;
  TermArgs<T> args{.tiles = statistics.tiles,
                   .x = statistics.x,
                   .dy = tokens<const T>(op.dy, "dy"),
                   .weight = elements<const A>(op.weight, "weight"),
                   .statistics = statistics.token,
                   .token = token,
                   .tile = statistics.tile,
                   .initial_count = statistics.initial_count,
                   .initial_mean = statistics.initial_mean,
                   .dmean = elements<const A>(op.dmean, "dmean"),
                   .dvar = elements<const A>(op.dvar, "dvar"),
                   .dinitial_mean = elements<A>(op.dinitial_mean, "dinitial_mean"),
                   .dinitial_var = elements<A>(op.dinitial_var, "dinitial_var"),
                   .batch = shape.batch,
                   .groups = shape.groups,
                   .width = shape.dim / shape.groups};
  const Blocks tile_blocks{divide_up(args.tiles.count * shape.groups, kStatisticsThreads)};
  run.launch(token_gradients<T>, {divide_up(shape.batch * shape.length * shape.groups, kWarps)},
             kStatisticsThreads, 0, args);
  run.launch(tile_terms<T>, tile_blocks, kStatisticsThreads, 0, args);
  run.launch(carry_terms<T>, {divide_up(shape.count * shape.groups, kStatisticsThreads)}, kStatisticsThreads,
             0, args);
  run.launch(token_terms<T>, tile_blocks, kStatisticsThreads, 0, args);
}

}  // namespace

void timestep_norm_forward(const TimestepNormForward& op, const TimestepNormShape& shape, Run& run) {
  with_storage(op.x.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    const StatisticsArgs<T> statistics = find_statistics<T>(op, shape, run, &op);
    ApplyArgs<T> args = apply_args<T>(op, shape, statistics.token);
    args.out = elements<T>(op.y, "y");
    const bool wide =
        wide_tokens(kWidest<T>, shape, {&op.x, &op.y}) && aligned(kWidest<T>, {&op.weight, &op.bias});
    with_width<T>(wide, [&](auto width) {
      const std::int64_t blocks = std::min(shape.batch * shape.length, kTokenBlocks);
      run.launch(normalize<width, T>, {blocks, column_blocks(shape.dim, width)}, kApplyThreads, 0, args);
    });
  });
}

void timestep_norm_backward(const TimestepNormBackward& op, const TimestepNormShape& shape, Run& run) {
  with_storage(op.x.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    using A = Acc<T>;
    const StatisticsArgs<T> statistics = find_statistics<T>(op, shape, run, nullptr);
    const Global<double> terms = run.workspace<double>(pairs(shape.batch * shape.length, shape));
    find_terms(op, shape, run, statistics, terms);

    const std::int64_t parts = std::min(shape.batch * shape.length, kMostParts);
    ApplyArgs<T> args = apply_args<T>(op, shape, statistics.token);
    args.dy = tokens<const T>(op.dy, "dy");
    args.out = elements<T>(op.dx, "dx");
    args.terms = terms;
    if (op.dweight.defined()) args.dweight = run.workspace<A>(parts * shape.dim);
    if (op.dbias.defined()) args.dbias = run.workspace<A>(parts * shape.dim);
    const bool wide =
        wide_tokens(kWidest<T>, shape, {&op.x, &op.dy, &op.dx}) && aligned(kWidest<T>, {&op.weight});
    with_width<T>(wide, [&](auto width) {
      run.launch(write_gradients<width, T>, {parts, column_blocks(shape.dim, width)}, kApplyThreads, 0, args);
    });
    finish_columns<A>(run, args.dweight, elements<A>(op.dweight, "dweight"), parts, shape.dim);
    finish_columns<A>(run, args.dbias, elements<A>(op.dbias, "dbias"), parts, shape.dim);
  });
}

}  // namespace megalodon::cuda
