// Complex exponential moving average (Megalodon, section 3.1) and its real special case (MEGA).
//
//   h_t = q * h_{t-1} + p * x_t          y_t = sum_k Re(gamma_k * h_{t,k}) + omega * x_t
#pragma once

#include "megalodon/ops/sequence.h"

namespace megalodon {

struct Cema {
  const char* name = "cema";
  bool real = false;     // ema: q, gamma and the state have no trailing axis of 2
  Tensor x;              // (B, L, D)
  Tensor p;              // (D, N)
  Tensor q;              // (D, N, 2)
  Tensor gamma;          // (D, N, 2)
  Tensor omega;          // (D,) or absent
  Tensor initial_state;  // (count, D, N, 2) or absent
  SequenceInputs sequence;
};

struct CemaShape : SequenceShape {
  std::int64_t dim = 0;   // D
  std::int64_t ndim = 0;  // N
};

CemaShape validate(const Cema& op);

struct CemaForward : Cema {
  Tensor y;      // (B, L, D)
  Tensor state;  // (count, D, N, 2)
};

// Needs nothing but the inputs of forward: states are recomputed from checkpoints.
struct CemaBackward : Cema {
  Tensor dy;      // (B, L, D)
  Tensor dstate;  // like state, or absent
  Tensor dx, dp, dq, dgamma;
  Tensor domega;          // absent where omega is
  Tensor dinitial_state;  // absent where initial_state is
};

void validate_cotangents(const CemaBackward& op, const CemaShape& shape);

// p = sigmoid(alpha), |q| = 1 - sigmoid(alpha) sigmoid(delta), arg q_k = k sigmoid(theta) 2 pi / N, k = 1..N.
struct CemaCoefficients {
  Tensor alpha;  // (D, N)
  Tensor delta;  // (D, N)
  Tensor theta;  // (D,)
};

CemaShape validate(const CemaCoefficients& op);

struct CemaCoefficientsForward : CemaCoefficients {
  Tensor p;  // (D, N)
  Tensor q;  // (D, N, 2)
};

struct CemaCoefficientsBackward : CemaCoefficients {
  Tensor dp;
  Tensor dq;  // or absent
  Tensor dalpha, ddelta, dtheta;
};

void validate_cotangents(const CemaCoefficientsBackward& op, const CemaShape& shape);

}  // namespace megalodon
