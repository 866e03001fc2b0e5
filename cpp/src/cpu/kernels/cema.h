// Complex exponential moving average. The real one runs here with imaginary parts of zero.
#pragma once

#include "cpu/kernels/cema_reverse.h"
#include "cpu/kernels/cema_step.h"

namespace megalodon::cpu::MEGALODON_TARGET {

inline int cema_threads(const Cema& op, int threads) {
  return useful_threads(threads, op.x.numel() * op.p.size(1));
}

inline void cema_forward(const CemaForward& op, const SequenceSpan& sequences, int threads) {
  record_isa(kIsa);
  with_accumulator(op.x.dtype, [&](auto* tag) {
    using A = std::remove_pointer_t<decltype(tag)>;
    const auto forward = sequences.longest <= 1 ? cema_step<A> : cema_forward_as<A>;
    forward(op, sequences, cema_threads(op, threads));
  });
}

inline void cema_backward(const CemaBackward& op, const SequenceSpan& sequences, int threads) {
  record_isa(kIsa);
  with_accumulator(op.x.dtype, [&](auto* tag) {
    cema_backward_as<std::remove_pointer_t<decltype(tag)>>(op, sequences, cema_threads(op, threads));
  });
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
