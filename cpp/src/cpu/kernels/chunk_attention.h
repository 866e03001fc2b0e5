// Entry points of attention inside chunks.
//
// The normalized operator is the plain one between two passes over z: queries and keys are written to arrays
// of the accumulation type, whose size is that of z, and their gradients are read from such arrays.
#pragma once

#include "cpu/kernels/attention_decode.h"
#include "cpu/kernels/attention_forward.h"
#include "cpu/kernels/attention_gradients.h"
#include "cpu/kernels/attention_state.h"
#include "cpu/kernels/rotary.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// An array of A with the shape of `like`.
template <class A>
class TensorScratch {
 public:
  explicit TensorScratch(const Tensor& like) : memory_(like.numel()), tensor_(like) {
    tensor_.data = memory_.data();
    tensor_.dtype = std::is_same_v<A, double> ? DType::float64 : DType::float32;
    std::int64_t stride = 1;
    for (int axis = like.rank; axis-- > 0;) {
      tensor_.strides[static_cast<std::size_t>(axis)] = stride;
      stride *= like.size(axis);
    }
  }

  const Tensor& tensor() const { return tensor_; }

 private:
  Scratch<A> memory_;
  Tensor tensor_;
};

template <class P>
inline void attend(const ChunkAttentionForward& op, const SequenceSpan& sequences, int threads) {
  using A = Acc<P>;
  const int useful = useful_attention_threads(op, sequences, threads);
  const bool decode = sequences.longest == 1;
  if (decode) {
    Decode<A>(op, sequences, useful).run();
  } else {
    attend_forward<P>(op, sequences, useful);
  }
  write_final_state<A>(op, sequences, decode, threads);
}

inline void chunk_attention_forward(const ChunkAttentionForward& op, const SequenceSpan& sequences,
                                    int threads) {
  record_isa(kIsa);
  with_operand(op.v.dtype, [&](auto* tag) {
    using P = std::remove_pointer_t<decltype(tag)>;
    attend<P>(op, sequences, threads);
  });
  zero_padding(op.y, sequences, threads);
}

inline void chunk_attention_backward(const ChunkAttentionBackward& op, const SequenceSpan& sequences,
                                     int threads) {
  record_isa(kIsa);
  with_operand(op.v.dtype, [&](auto* tag) {
    using P = std::remove_pointer_t<decltype(tag)>;
    attend_backward<P>(op, sequences, useful_attention_threads(op, sequences, threads));
  });
  zero_padding(op.dq, sequences, threads);
  zero_padding(op.dk, sequences, threads);
  zero_padding(op.dv, sequences, threads);
}

inline void normalized_attention_forward(const NormalizedAttentionForward& op, const SequenceSpan& sequences,
                                         int threads) {
  record_isa(kIsa);
  with_operand(op.v.dtype, [&](auto* tag) {
    using P = std::remove_pointer_t<decltype(tag)>;
    using A = Acc<P>;
    const TensorScratch<A> q(op.z), k(op.z);
    Rotary<A>(op, sequences, threads).forward(q.tensor(), k.tensor());
    const ChunkAttentionForward plain{{op, q.tensor(), k.tensor(), 1.0}, op};
    attend<P>(plain, sequences, threads);
  });
  zero_padding(op.y, sequences, threads);
}

inline void normalized_attention_backward(const NormalizedAttentionBackward& op,
                                          const SequenceSpan& sequences, int threads) {
  record_isa(kIsa);
  with_operand(op.v.dtype, [&](auto* tag) {
    using P = std::remove_pointer_t<decltype(tag)>;
    using A = Acc<P>;
    const TensorScratch<A> q(op.z), k(op.z), dq(op.z), dk(op.z);
    const Rotary<A> rotary(op, sequences, threads);
    rotary.forward(q.tensor(), k.tensor());
    const ChunkAttentionBackward plain{{op, q.tensor(), k.tensor(), 1.0}, op, op, dq.tensor(), dk.tensor()};
    attend_backward<P>(plain, sequences, useful_attention_threads(plain, sequences, threads));
    rotary.backward(dq.tensor(), dk.tensor(), op.dz, op.dgamma, op.dbeta);
  });
  zero_padding(op.dz, sequences, threads);
  zero_padding(op.dv, sequences, threads);
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
