// The coefficients of CEMA from their unconstrained parameters. Small (D, N) arrays: double arithmetic.
//
//   p = sigmoid(alpha)     r = |q| = 1 - p sigmoid(delta)     q_k = r exp(i k phi),  phi = sigmoid(theta) 2
//   pi / N
#pragma once

#include <cmath>

#include "cpu/kernels/rows.h"
#include "cpu/kernels/tile.h"
#include "cpu/kernels/vector_math.h"

namespace megalodon::cpu::MEGALODON_TARGET {

inline double cema_sigmoid(double value) {
  const double e = std::exp(value < 0 ? value : -value);  // never overflows
  return (value < 0 ? e : 1.0) / (1.0 + e);
}

// sigmoid of a channel's parameters.
struct SigmoidRow {
  static constexpr std::int64_t kMostDims = 64;
  double value[kMostDims];

  template <class A>
  SigmoidRow(const A* from, std::int64_t ndim) {
    const std::int64_t end = padded_to_vector<double>(ndim);
    for (std::int64_t k = 0; k < end; ++k) value[k] = k < ndim ? static_cast<double>(from[k]) : 0;
    for (std::int64_t k = 0; k < end; k += kLanes<double>) store(value + k, sigmoid(load(value + k)));
  }
};

// exp(i k phi) for k = 1, 2, ... by repeated rotation: the error grows by one rounding per step, N <= 64.
struct CemaRotation {
  double cosine, sine, re = 1, im = 0;

  explicit CemaRotation(double phi) : cosine(std::cos(phi)), sine(std::sin(phi)) {}
  void step() {
    const double next = re * cosine - im * sine;
    im = re * sine + im * cosine;
    re = next;
  }
};

inline constexpr double kTwoPi = 6.283185307179586476925286766559;
inline constexpr std::int64_t kCoefficientChannels = 32;  // channels of a job

template <class F>
inline void for_coefficient_channels(std::int64_t dim, std::int64_t ndim, int threads, const F& f) {
  constexpr std::int64_t kOperations = 64;  // per coefficient
  const int useful = useful_threads(threads, kOperations * dim * ndim);
  parallel_for((dim + kCoefficientChannels - 1) / kCoefficientChannels, useful, [&](std::int64_t job) {
    const std::int64_t begin = job * kCoefficientChannels;
    for (std::int64_t d = begin; d < dim && d < begin + kCoefficientChannels; ++d) f(d);
  });
}

template <class A>
inline void cema_coefficients_forward_as(const CemaCoefficientsForward& op, int threads) {
  const std::int64_t dim = op.alpha.size(0), ndim = op.alpha.size(1);
  for_coefficient_channels(dim, ndim, threads, [&](std::int64_t d) {
    CemaRotation rotation(cema_sigmoid(op.theta.as<const A>()[d]) * kTwoPi / static_cast<double>(ndim));
    const SigmoidRow p(op.alpha.as<const A>() + d * ndim, ndim), s(op.delta.as<const A>() + d * ndim, ndim);
    for (std::int64_t k = 0; k < ndim; ++k) {
      const std::int64_t i = d * ndim + k;
      rotation.step();
      const double radius = 1 - p.value[k] * s.value[k];
      op.p.as<A>()[i] = static_cast<A>(p.value[k]);
      op.q.as<A>()[2 * i] = static_cast<A>(radius * rotation.re);
      op.q.as<A>()[2 * i + 1] = static_cast<A>(radius * rotation.im);
    }
  });
}

// With e_k = exp(i k phi):  dr = Re(conj(e) dq),  dphi = sum_k k r Im(conj(e) dq).
template <class A>
inline void cema_coefficients_backward_as(const CemaCoefficientsBackward& op, int threads) {
  const std::int64_t dim = op.alpha.size(0), ndim = op.alpha.size(1);
  const A* dq = op.dq.as<const A>();  // null where absent
  for_coefficient_channels(dim, ndim, threads, [&](std::int64_t d) {
    const double turn = cema_sigmoid(op.theta.as<const A>()[d]), scale = kTwoPi / static_cast<double>(ndim);
    CemaRotation rotation(turn * scale);
    const SigmoidRow ps(op.alpha.as<const A>() + d * ndim, ndim), ss(op.delta.as<const A>() + d * ndim, ndim);
    double dphi = 0;
    for (std::int64_t k = 0; k < ndim; ++k) {
      const std::int64_t i = d * ndim + k;
      rotation.step();
      const double p = ps.value[k], s = ss.value[k];
      const double dq_re = dq != nullptr ? dq[2 * i] : 0, dq_im = dq != nullptr ? dq[2 * i + 1] : 0;
      const double dradius = rotation.re * dq_re + rotation.im * dq_im;
      dphi += static_cast<double>(k + 1) * (1 - p * s) * (rotation.re * dq_im - rotation.im * dq_re);
      op.dalpha.as<A>()[i] = static_cast<A>((op.dp.as<const A>()[i] - dradius * s) * p * (1 - p));
      op.ddelta.as<A>()[i] = static_cast<A>(-dradius * p * s * (1 - s));
    }
    op.dtheta.as<A>()[d] = static_cast<A>(dphi * scale * turn * (1 - turn));
  });
}

inline void cema_coefficients_forward(const CemaCoefficientsForward& op, int threads) {
  record_isa(kIsa);
  with_accumulator(op.alpha.dtype, [&](auto* tag) {
    cema_coefficients_forward_as<std::remove_pointer_t<decltype(tag)>>(op, threads);
  });
}

inline void cema_coefficients_backward(const CemaCoefficientsBackward& op, int threads) {
  record_isa(kIsa);
  with_accumulator(op.alpha.dtype, [&](auto* tag) {
    cema_coefficients_backward_as<std::remove_pointer_t<decltype(tag)>>(op, threads);
  });
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
