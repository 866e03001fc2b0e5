#include "common/column_sums.cuh"
#include "common/width.cuh"
#include "ops/operators.h"
#include "ops/residual/elementwise.cuh"
#include "ops/residual/norm.cuh"

namespace megalodon::cuda {
namespace {

constexpr std::int64_t kMostParts = 512;   // of sums of parameters' gradients
constexpr std::int64_t kRowBlocks = 4096;  // of kernels whose blocks walk rows

template <class T>
NormArgs<T> args_of(const Norm& op, const RowShape& shape) {
  return {.x = elements<const T>(op.x, "x"),
          .residual = elements<const T>(op.residual, "residual"),
          .weight = elements<const Acc<T>>(op.weight, "weight"),
          .bias = elements<const Acc<T>>(op.bias, "bias"),
          .rows = shape.rows,
          .dim = shape.dim,
          .eps = static_cast<Acc<T>>(op.eps)};
}

// f(T, whether to centre, V).
template <class F>
void with_norm(const Norm& op, const RowShape& shape, const Tensor& out, const Tensor& dy, const F& f) {
  with_storage(op.x.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    const bool wide = shape.dim % kWidest<T> == 0 &&
                      aligned(kWidest<T>, {&op.x, &op.residual, &op.weight, &op.bias, &out, &dy});
    with_width<T>(wide, [&](auto width) {
      if (op.center) {
        f(storage, std::true_type{}, width);
      } else {
        f(storage, std::false_type{}, width);
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
  with_norm(op, shape, op.y, {}, [&](auto* storage, auto center, auto width) {
    using T = std::remove_pointer_t<decltype(storage)>;
    NormArgs<T> args = args_of<T>(op, shape);
    args.out = elements<T>(op.y, "y");
    run.launch(norm_forward_kernel<center, width, T>, {divide_up(shape.rows, kNormWarps)}, kNormWarps * kWarp,
               0, args);
  });
}

void norm_backward(const NormBackward& op, const RowShape& shape, Run& run) {
  with_norm(op, shape, op.dx, op.dy, [&](auto* storage, auto center, auto width) {
    using T = std::remove_pointer_t<decltype(storage)>;
    using A = Acc<T>;
    const std::int64_t parts = std::min(divide_up(shape.rows, kNormWarps), kMostParts);
    NormArgs<T> args = args_of<T>(op, shape);
    args.dy = elements<const T>(op.dy, "dy");
    args.out = elements<T>(op.dx, "dx");
    if (op.dweight.defined()) args.dweight = run.workspace<A>(parts * shape.dim);
    if (op.dbias.defined()) args.dbias = run.workspace<A>(parts * shape.dim);
    if (parts > 0) {
      run.launch(norm_backward_kernel<center, width, T>, {parts}, kNormWarps * kWarp,
                 shared_size<RowStatistics<A>>(kNormWarps), args);
    }
    finish_columns<A>(run, args.dweight, elements<A>(op.dweight, "dweight"), parts, shape.dim);
    finish_columns<A>(run, args.dbias, elements<A>(op.dbias, "dbias"), parts, shape.dim);
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
    const std::int64_t parts = std::min(shape.rows, op.dalpha.defined() ? kMostParts : kRowBlocks);
    TwoHopArgs<T> args = args_of<T>(op, shape);
    args.dy = elements<const T>(op.dy, "dy");
    args.out = elements<T>(op.dbranch, "dbranch");
    if (op.dalpha.defined()) args.dalpha = run.workspace<A>(parts * shape.dim);
    const bool wide =
        shape.dim % kWidest<T> == 0 && aligned(kWidest<T>, {&op.branch, &op.dy, &op.alpha, &op.dbranch});
    with_width<T>(wide, [&](auto width) {
      if (parts == 0) return;
      run.launch(two_hop_backward_kernel<width, T>, {parts, element_blocks(shape.dim, width)},
                 kElementThreads, 0, args);
    });
    finish_columns<A>(run, args.dalpha, elements<A>(op.dalpha, "dalpha"), parts, shape.dim);
  });
}

}  // namespace megalodon::cuda
