#include "common/column_sums.cuh"
#include "common/width.cuh"
#include "ops/operators.h"
#include "ops/residual/elementwise.cuh"
#include "ops/residual/norm_backward.cuh"

namespace megalodon::cuda {
namespace {

// Of kernels whose blocks walk rows. Those that leave sums of parameters' gradients have 1024 threads for
// each of 132 multiprocessors: fewer would leave some idle, more would write more sums.
constexpr std::int64_t kRowBlocks = 4096;
constexpr std::int64_t kSummingThreads = 132 * 1024;

template <class T>
NormArgs<T> args_of(const Norm& op, const RowShape& shape) {
  return {.x = elements<const T>(op.x, "x"),
          .residual = elements<const T>(op.residual, "residual"),
          .weight = elements<const Acc<T>>(op.weight, "weight"),
          .bias = elements<const Acc<T>>(op.bias, "bias"),
          .rows = shape.rows,
          .dim = shape.dim,
          .center = op.center,
          .eps = static_cast<Acc<T>>(op.eps)};
}

// Warps of a team whose lanes have up to `packs` accesses of V elements to a row, if a block has that many.
int warps_of(std::int64_t dim, int width, int packs) {
  int warps = 1;
  while (warps < kMostRowWarps && std::int64_t{warps} * kWarp * packs * width < dim) warps *= 2;
  return warps;
}

// f(storage, accesses that a lane keeps: kPacks or 0, V, warps of a team).
template <int kPacks, class F>
void with_norm(const Norm& op, const RowShape& shape, const Tensor& out, const Tensor& dy, const F& f) {
  with_storage(op.x.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    const bool wide = shape.dim % kWidest<T> == 0 &&
                      aligned(kWidest<T>, {&op.x, &op.residual, &op.weight, &op.bias, &out, &dy});
    with_width<T>(wide, [&](auto width) {
      const int warps = warps_of(shape.dim, width, kPacks);
      if (std::int64_t{warps} * kWarp * kPacks * width >= shape.dim) {
        f(storage, std::integral_constant<int, kPacks>{}, width, warps);
      } else {
        f(storage, std::integral_constant<int, 0>{}, width, warps);
      }
    });
  });
}

template <class T>
SiluMulArgs<T> args_of(const SiluMul& op) {
  return {.gate = elements<const T>(op.gate, "gate"),
          .value = elements<const T>(op.value, "value"),
          .count = op.gate.numel()};
}

template <class T>
TwoHopArgs<T> args_of(const TwoHopResidual& op, const RowShape& shape) {
  return {.branch = elements<const T>(op.branch, "branch"),
          .alpha = elements<const Acc<T>>(op.alpha, "alpha"),
          .rows = shape.rows,
          .dim = shape.dim};
}

std::int64_t element_blocks(std::int64_t count, int width) {
  return divide_up(count, std::int64_t{width} * kElementThreads);
}

}  // namespace

void norm_forward(const NormForward& op, const RowShape& shape, Run& run) {
  if (shape.rows == 0) return;
  with_norm<kForwardPacks>(op, shape, op.y, {}, [&](auto* storage, auto packs, auto width, int warps) {
    using T = std::remove_pointer_t<decltype(storage)>;
    const int block = std::max(warps, kBlockWarps);
    NormArgs<T> args = args_of<T>(op, shape);
    args.out = elements<T>(op.y, "y");
    args.warps = warps;
    run.launch(norm_forward_kernel<packs, width, T>, {divide_up(shape.rows, block / warps)}, block * kWarp,
               shared_size<Acc<T>>(kMostRowWarps * 2), args);
  });
}

void norm_backward(const NormBackward& op, const RowShape& shape, Run& run) {
  with_norm<kBackwardPacks>(op, shape, op.dx, op.dy, [&](auto* storage, auto packs, auto width, int warps) {
    using T = std::remove_pointer_t<decltype(storage)>;
    using A = Acc<T>;
    const int block = std::max(warps, kBlockWarps), teams = block / warps;
    const std::int64_t blocks = std::min(divide_up(shape.rows, teams), kSummingThreads / (block * kWarp));
    NormArgs<T> args = args_of<T>(op, shape);
    args.dy = elements<const T>(op.dy, "dy");
    args.out = elements<T>(op.dx, "dx");
    args.warps = warps;
    if (op.dweight.defined()) args.dweight = run.workspace<A>(blocks * teams * shape.dim);
    if (op.dbias.defined()) args.dbias = run.workspace<A>(blocks * teams * shape.dim);
    if (blocks > 0) {
      run.launch(norm_backward_kernel<packs, width, T>, {blocks}, block * kWarp,
                 shared_size<A>(kMostRowWarps * 2), args);
    }
    finish_columns<A>(run, args.dweight, elements<A>(op.dweight, "dweight"), blocks * teams, shape.dim);
    finish_columns<A>(run, args.dbias, elements<A>(op.dbias, "dbias"), blocks * teams, shape.dim);
  });
}

void silu_mul_forward(const SiluMulForward& op, const RowShape&, Run& run) {
  if (op.gate.numel() == 0) return;
  with_storage(op.gate.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    SiluMulArgs<T> args = args_of<T>(op);
    args.y = elements<T>(op.y, "y");
    const bool wide = args.count % kWidest<T> == 0 && aligned(kWidest<T>, {&op.gate, &op.value, &op.y});
    with_width<T>(wide, [&](auto width) {
      run.launch(silu_mul_forward_kernel<width, T>, {element_blocks(args.count, width)}, kElementThreads, 0,
                 args);
    });
  });
}

void silu_mul_backward(const SiluMulBackward& op, const RowShape&, Run& run) {
  if (op.gate.numel() == 0) return;
  with_storage(op.gate.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    SiluMulArgs<T> args = args_of<T>(op);
    args.dy = elements<const T>(op.dy, "dy");
    args.dgate = elements<T>(op.dgate, "dgate");
    args.dvalue = elements<T>(op.dvalue, "dvalue");
    const bool wide = args.count % kWidest<T> == 0 &&
                      aligned(kWidest<T>, {&op.gate, &op.value, &op.dy, &op.dgate, &op.dvalue});
    with_width<T>(wide, [&](auto width) {
      run.launch(silu_mul_backward_kernel<width, T>, {element_blocks(args.count, width)}, kElementThreads, 0,
                 args);
    });
  });
}

void two_hop_residual_forward(const TwoHopResidualForward& op, const RowShape& shape, Run& run) {
  if (shape.rows == 0) return;
  with_storage(op.branch.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    TwoHopArgs<T> args = args_of<T>(op, shape);
    args.residual = elements<const T>(op.residual, "residual");
    args.out = elements<T>(op.y, "y");
    const bool wide =
        shape.dim % kWidest<T> == 0 && aligned(kWidest<T>, {&op.branch, &op.residual, &op.alpha, &op.y});
    with_width<T>(wide, [&](auto width) {
      run.launch(two_hop_forward_kernel<width, T>,
                 {std::min(shape.rows, kRowBlocks), element_blocks(shape.dim, width)}, kElementThreads, 0,
                 args);
    });
  });
}

void two_hop_residual_backward(const TwoHopResidualBackward& op, const RowShape& shape, Run& run) {
  with_storage(op.branch.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    using A = Acc<T>;
    TwoHopArgs<T> args = args_of<T>(op, shape);
    args.dy = elements<const T>(op.dy, "dy");
    args.out = elements<T>(op.dbranch, "dbranch");
    const bool wide =
        shape.dim % kWidest<T> == 0 && aligned(kWidest<T>, {&op.branch, &op.dy, &op.alpha, &op.dbranch});
    with_width<T>(wide, [&](auto width) {
      const std::int64_t columns = element_blocks(shape.dim, width);
      const std::int64_t walkers = std::max<std::int64_t>(kSummingThreads / kElementThreads / columns, 1);
      const std::int64_t parts = std::min(shape.rows, op.dalpha.defined() ? walkers : kRowBlocks);
      if (op.dalpha.defined()) args.dalpha = run.workspace<A>(parts * shape.dim);
      if (parts > 0) {
        run.launch(two_hop_backward_kernel<width, T>, {parts, columns}, kElementThreads, 0, args);
      }
      finish_columns<A>(run, args.dalpha, elements<A>(op.dalpha, "dalpha"), parts, shape.dim);
    });
  });
}

}  // namespace megalodon::cuda
