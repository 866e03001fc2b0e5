// The coefficients of CEMA from their unconstrained parameters, a thread per channel, in double: (D, N)
// arrays are small.
//
//   p = sigmoid(alpha)     r = |q| = 1 - p sigmoid(delta)     q_k = r exp(i k phi),  phi = sigmoid(theta) 2
//   pi / N
#pragma once

#include "common/types.cuh"

namespace megalodon::cuda {

inline constexpr int kCoefficientThreads = 64;

template <class A>
struct CoefficientArgs {
  Global<const A> alpha, delta, theta;
  Global<A> p, q;
  Global<const A> dp, dq;  // dq may be absent
  Global<A> dalpha, ddelta, dtheta;
  std::int64_t dim, ndim;
};

// 1 / (1 + exp(-x)) without overflow.
MEGALODON_DEVICE double logistic(double x) {
  const double e = std::exp(x < 0 ? x : -x);
  return (x < 0 ? e : 1.0) / (1.0 + e);
}

// exp(i k phi) for k = 1, 2, ... by repeated rotation: the error grows by one rounding per step, N <= 64.
struct Rotation {
  double cosine, sine, re, im;
};

MEGALODON_DEVICE Rotation rotation(double turn, std::int64_t ndim) {
  const double phi = turn * 6.283185307179586476925286766559 / static_cast<double>(ndim);
  return {std::cos(phi), std::sin(phi), 1, 0};
}

MEGALODON_DEVICE void step(Rotation& at) {
  const double re = at.re * at.cosine - at.im * at.sine;
  at.im = at.re * at.sine + at.im * at.cosine;
  at.re = re;
}

template <class A>
MEGALODON_KERNEL void coefficients_forward_kernel(CoefficientArgs<A> op) {
  const std::int64_t d = block_x() * kCoefficientThreads + thread_index();
  if (d >= op.dim) return;
  Rotation at = rotation(logistic(op.theta[d]), op.ndim);
  for (std::int64_t i = d * op.ndim; i < (d + 1) * op.ndim; ++i) {
    step(at);
    const double p = logistic(op.alpha[i]), radius = 1 - p * logistic(op.delta[i]);
    op.p[i] = static_cast<A>(p);
    op.q[2 * i] = static_cast<A>(radius * at.re);
    op.q[2 * i + 1] = static_cast<A>(radius * at.im);
  }
}

// With e_k = exp(i k phi):  dr = Re(conj(e) dq),  dphi = sum_k k r Im(conj(e) dq).
template <class A>
MEGALODON_KERNEL void coefficients_backward_kernel(CoefficientArgs<A> op) {
  const std::int64_t d = block_x() * kCoefficientThreads + thread_index();
  if (d >= op.dim) return;
  const double turn = logistic(op.theta[d]);
  Rotation at = rotation(turn, op.ndim);
  double dturn = 0;
  for (std::int64_t k = 0; k < op.ndim; ++k) {
    const std::int64_t i = d * op.ndim + k;
    step(at);
    const double p = logistic(op.alpha[i]), s = logistic(op.delta[i]);
    const double dre = op.dq ? op.dq[2 * i] : A(0), dim = op.dq ? op.dq[2 * i + 1] : A(0);
    const double dradius = at.re * dre + at.im * dim;
    dturn += static_cast<double>(k + 1) * (1 - p * s) * (at.re * dim - at.im * dre);
    op.dalpha[i] = static_cast<A>((op.dp[i] - dradius * s) * p * (1 - p));
    op.ddelta[i] = static_cast<A>(-dradius * p * s * (1 - s));
  }
  const double scale = 6.283185307179586476925286766559 / static_cast<double>(op.ndim);
  op.dtheta[d] = static_cast<A>(dturn * scale * turn * (1 - turn));
}

}  // namespace megalodon::cuda
