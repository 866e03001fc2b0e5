#include "common/column_sums.cuh"
#include "ops/cema/backward.cuh"
#include "ops/cema/coefficients.cuh"
#include "ops/cema/gradients.cuh"
#include "ops/cema/step.cuh"
#include "ops/operators.h"

namespace megalodon::cuda {
namespace {

constexpr std::int64_t kGradientBlocks = 2048;  // about as many as fill a GPU: each keeps a row of sums

// f(T, Real or Complex of a CemaArgs with the inputs).
template <class F>
void with_args(const Cema& op, const CemaShape& shape, Run& run, const F& f) {
  with_storage(op.x.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    using A = Acc<T>;
    const auto fill = [&](auto args) {
      args.tiles.sequences = resolve(run, op.sequence, shape);
      args.x = tokens<const T>(op.x, "x");
      args.p = elements<const A>(op.p, "p");
      args.q = elements<const A>(op.q, "q");
      args.gamma = elements<const A>(op.gamma, "gamma");
      args.omega = elements<const A>(op.omega, "omega");
      args.initial = elements<const A>(op.initial_state, "initial_state");
      args.dim = shape.dim;
      args.ndim = shape.ndim;
      f(args);
    };
    if (op.real) {
      fill(CemaArgs<T, Real>{});
    } else {
      fill(CemaArgs<T, Complex>{});
    }
  });
}

template <class T, template <class> class N>
std::int64_t state_elements(const CemaArgs<T, N>& args, std::int64_t rows) {
  return rows * args.ndim * N<Acc<T>>::parts * args.dim;
}

template <class T, template <class> class N>
Blocks tile_blocks(const CemaArgs<T, N>& args, std::int64_t along_time) {
  return {along_time, divide_up(args.dim, kCemaChannels<Acc<T>>)};
}

template <class T, template <class> class N, class A = Acc<T>>
void carry(Run& run, const CemaArgs<T, N>& args, Global<const A> start, Global<A> states, Global<A> end,
           bool backward) {
  const std::int64_t count = args.tiles.sequences.count * args.ndim * args.dim;
  run.launch(carry_states<A, N>, {divide_up(count, kCarryThreads)}, kCarryThreads, 0,
             CarryArgs<A>{args.tiles, args.q, start, states, end, args.dim, args.ndim, backward});
}

// Steps 1 and 2: `args.states` becomes what every tile starts with.
template <class T, template <class> class N>
void find_states(Run& run, CemaArgs<T, N>& args, Global<Acc<T>> final_state) {
  args.states = run.workspace<Acc<T>>(state_elements(args, args.tiles.count));
  run.launch(end_states<T, N>, tile_blocks(args, args.tiles.count), kCemaChannels<Acc<T>>, 0, args);
  carry(run, args, args.initial, args.states, final_state, false);
}

// Products of matrices serve 16-bit tokens; what else there is takes the scan.
template <class T, template <class> class N>
inline constexpr bool kHasStrands = sizeof(T) == 2 && N<float>::parts == 2;

template <class T>
StrandArgs<T> strand_args(Run& run, const CemaArgs<T, Complex>& args, bool adjoint) {
  StrandArgs<T> of{.strands = strands(run, args.tiles.sequences, adjoint)};
  of.system = {args.p, args.q, args.gamma, args.omega, args.dim, args.ndim, adjoint};
  return of;
}

template <class T>
void forward_by_strands(const CemaForward& op, const CemaArgs<T, Complex>& args, Run& run) {
  StrandArgs<T> of = strand_args(run, args, false);
  of.x = args.x;
  of.y = args.y;
  of.initial = args.initial;
  of.final = args.final_state;
  walk_strands(run, of, wide_tokens(args.dim, {&op.x, &op.y}));
}

template <class T, template <class> class N>
void forward(const CemaForward& op, CemaArgs<T, N> args, Run& run) {
  using A = Acc<T>;
  args.y = tokens<T>(op.y, "y");
  args.final_state = elements<A>(op.state, "state");
  if (args.tiles.sequences.length == 1 && !args.tiles.sequences.offsets) return step(run, args);
  if constexpr (kHasStrands<T, N>) {
    if (args.ndim <= kSystemDims) {
      forward_by_strands(op, args, run);
      return clear_padding(run, op.sequence, args.y.data, args.dim);
    }
  }
  args.tiles = divide(run, args.tiles.sequences, kCemaTile);
  const bool one_tile_each = !args.tiles.first && args.tiles.per_sequence == 1;
  if (!one_tile_each) find_states(run, args, args.final_state);
  run.launch(cema_outputs<T, N>, tile_blocks(args, args.tiles.count), kCemaChannels<A>,
             shared_size<A>(kCemaTile * kCemaChannels<A>), args);
  clear_padding(run, op.sequence, args.y.data, args.dim);
}

// Adds the rows of sums that kernels left in the workspace.
template <class Args>
void finish_gradients(const CemaBackward& op, Run& run, const Args& args, std::int64_t dim, std::int64_t ndim,
                      std::int64_t rows, std::int64_t parts) {
  using A = std::remove_cvref_t<decltype(args.dp[0])>;
  finish_columns<A>(run, args.dp, elements<A>(op.dp, "dp"), rows, dim, ndim);
  finish_columns<A>(run, args.dq, elements<A>(op.dq, "dq"), rows, dim, ndim * parts);
  finish_columns<A>(run, args.dgamma, elements<A>(op.dgamma, "dgamma"), rows, dim, ndim * parts);
  finish_columns<A>(run, args.domega, elements<A>(op.domega, "domega"), rows, dim);
}

template <class T>
void backward_by_strands(const CemaBackward& op, const CemaArgs<T, Complex>& args, Run& run) {
  const bool wide = wide_tokens(args.dim, {&op.x, &op.dy, &op.dx});
  const auto dstate = elements<const float>(op.dstate, "dstate");
  StrandArgs<T> adjoint = strand_args(run, args, true);
  adjoint.x = args.dy;
  adjoint.y = args.y;
  adjoint.initial = dstate;
  adjoint.final = elements<float>(op.dinitial_state, "dinitial_state");
  adjoint.carries = run.workspace<float>(carry_elements(adjoint.strands, args.dim));
  walk_strands(run, adjoint, wide);

  const std::int64_t rows = adjoint.strands.count, width = args.ndim * args.dim;
  MomentArgs<T> of{adjoint.strands, adjoint.system, args.x, args.dy, args.initial, dstate, adjoint.carries};
  of.dp = run.workspace<float>(rows * width);
  of.dq = run.workspace<float>(rows * 2 * width);
  of.dgamma = run.workspace<float>(rows * 2 * width);
  if (op.domega.defined()) of.domega = run.workspace<float>(rows * args.dim);
  gather_moments(run, of, wide);
  finish_gradients(op, run, of, args.dim, args.ndim, rows, 2);
}

template <class T, template <class> class N>
void backward(const CemaBackward& op, CemaArgs<T, N> args, Run& run) {
  using A = Acc<T>;
  constexpr int parts = N<A>::parts, slots = kCemaTile * kCemaChannels<A>;
  args.dy = tokens<const T>(op.dy, "dy");
  args.y = tokens<T>(op.dx, "dx");
  if constexpr (kHasStrands<T, N>) {
    if (args.ndim <= kSystemDims) {
      backward_by_strands(op, args, run);
      return clear_padding(run, op.sequence, args.y.data, args.dim);
    }
  }
  args.tiles = divide(run, args.tiles.sequences, kCemaTile);
  find_states(run, args, {});
  args.lambdas = run.workspace<A>(state_elements(args, args.tiles.count));
  run.launch(end_lambdas<T, N>, tile_blocks(args, args.tiles.count), kCemaChannels<A>, 0, args);
  carry(run, args, elements<const A>(op.dstate, "dstate"), args.lambdas,
        elements<A>(op.dinitial_state, "dinitial_state"), true);

  const std::int64_t channels = divide_up(args.dim, kCemaChannels<A>);
  const std::int64_t rows = std::min(args.tiles.count, divide_up(kGradientBlocks, channels));
  args.dp = run.workspace<A>(rows * args.ndim * args.dim);
  args.dq = run.workspace<A>(state_elements(args, rows));
  args.dgamma = run.workspace<A>(state_elements(args, rows));
  if (op.domega.defined()) args.domega = run.workspace<A>(rows * args.dim);
  run.launch(cema_gradients<T, N>, tile_blocks(args, rows), kCemaChannels<A>,
             shared_size<N<A>>(slots) + shared_size<A>(slots), args);
  finish_gradients(op, run, args, args.dim, args.ndim, rows, parts);
  clear_padding(run, op.sequence, args.y.data, args.dim);
}

template <class A>
CoefficientArgs<A> args_of(const CemaCoefficients& op, const CemaShape& shape) {
  return {.alpha = elements<const A>(op.alpha, "alpha"),
          .delta = elements<const A>(op.delta, "delta"),
          .theta = elements<const A>(op.theta, "theta"),
          .dim = shape.dim,
          .ndim = shape.ndim};
}

// f(A); parameters are float or double.
template <class F>
void with_parameter(DType dtype, const F& f) {
  dtype == DType::float64 ? f(static_cast<double*>(nullptr)) : f(static_cast<float*>(nullptr));
}

}  // namespace

void cema_forward(const CemaForward& op, const CemaShape& shape, Run& run) {
  with_args(op, shape, run, [&](const auto& args) { forward(op, args, run); });
}

void cema_backward(const CemaBackward& op, const CemaShape& shape, Run& run) {
  with_args(op, shape, run, [&](const auto& args) { backward(op, args, run); });
}

void cema_coefficients_forward(const CemaCoefficientsForward& op, const CemaShape& shape, Run& run) {
  with_parameter(op.alpha.dtype, [&](auto* parameter) {
    using A = std::remove_pointer_t<decltype(parameter)>;
    CoefficientArgs<A> args = args_of<A>(op, shape);
    args.p = elements<A>(op.p, "p");
    args.q = elements<A>(op.q, "q");
    run.launch(coefficients_forward_kernel<A>, {divide_up(shape.dim, kCoefficientThreads)},
               kCoefficientThreads, 0, args);
  });
}

void cema_coefficients_backward(const CemaCoefficientsBackward& op, const CemaShape& shape, Run& run) {
  with_parameter(op.alpha.dtype, [&](auto* parameter) {
    using A = std::remove_pointer_t<decltype(parameter)>;
    CoefficientArgs<A> args = args_of<A>(op, shape);
    args.dp = elements<const A>(op.dp, "dp");
    args.dq = elements<const A>(op.dq, "dq");
    args.dalpha = elements<A>(op.dalpha, "dalpha");
    args.ddelta = elements<A>(op.ddelta, "ddelta");
    args.dtheta = elements<A>(op.dtheta, "dtheta");
    run.launch(coefficients_backward_kernel<A>, {divide_up(shape.dim, kCoefficientThreads)},
               kCoefficientThreads, 0, args);
  });
}

}  // namespace megalodon::cuda
