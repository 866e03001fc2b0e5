// Queries and keys of normalized attention out of z, forward and backward.
//
//   z^ = z rsqrt(mean(z^2) + eps)     x_i = z^ gamma[i] + beta[i]     q, k = x_0, x_1 turned by the position
//   in the chunk
#pragma once

#include <utility>

#include "cpu/kernels/arena.h"
#include "cpu/kernels/attention_chunks.h"
#include "cpu/kernels/column_sums.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/vector_math.h"
#include "megalodon/math/rope.h"

namespace megalodon::cpu::MEGALODON_TARGET {

template <class V, int... i>
inline V swap_pairs(V v, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(v, v, (i ^ 1)...);
}

// The rotation of one position: x cosine + swapped(x) sine, with (cos, cos) and (-sin, sin) for every pair.
template <class A>
class Rotation {
 public:
  Rotation(Arena<A>& arena, std::int64_t pitch) : cosine_(arena.take(pitch)), sine_(arena.take(pitch)) {}

  // `frequencies` of all pairs, up to a whole vector of A.
  void set(std::int64_t position, const double* frequencies, std::int64_t pairs) const {
    using Lanes = std::make_integer_sequence<int, kLanes<A>>;
    for (std::int64_t pair = 0; pair < pairs; pair += kLanes<A>) {
      A cosines[kLanes<A>], sines[kLanes<A>];
      for (int i = 0; i < kLanes<A>; i += kLanes<double>) {
        VecD sine, cosine;
        sin_cos(load(frequencies + pair + i) * static_cast<double>(position), sine, cosine);
        for (int j = 0; j < kLanes<double>; ++j) {
          cosines[i + j] = static_cast<A>(cosine[j]);
          sines[i + j] = static_cast<A>(sine[j]);
        }
      }
      const Vec<A> cosine = load(cosines), sine = load(sines);
      store(cosine_ + 2 * pair, interleave_low(cosine, cosine, Lanes{}));
      store(cosine_ + 2 * pair + kLanes<A>, interleave_high(cosine, cosine, Lanes{}));
      store(sine_ + 2 * pair, interleave_low(-sine, sine, Lanes{}));
      store(sine_ + 2 * pair + kLanes<A>, interleave_high(-sine, sine, Lanes{}));
    }
  }

  Vec<A> turn(Vec<A> x, std::int64_t channel) const {
    return x * load(cosine_ + channel) + swapped(x) * load(sine_ + channel);
  }
  Vec<A> turn_back(Vec<A> x, std::int64_t channel) const {
    return x * load(cosine_ + channel) - swapped(x) * load(sine_ + channel);
  }

 private:
  static Vec<A> swapped(Vec<A> x) { return swap_pairs(x, std::make_integer_sequence<int, kLanes<A>>{}); }

  A* cosine_;
  A* sine_;
};

// What one part of the tokens works in: rows of one head, zero from Dz on.
template <class A>
struct RotarySpace {
  Rotation<A> rotation;
  A *z, *dz;

  RotarySpace(Arena<A>& arena, std::int64_t pitch)
      : rotation(arena, pitch), z(arena.take(pitch)), dz(arena.take(pitch)) {}
};

template <class A>
class Rotary {
 public:
  Rotary(const NormalizedAttention& op, const SequenceSpan& sequences, int threads)
      : op_(op),
        sequences_(sequences),
        heads_(op.z.size(2)),
        dim_(op.z.size(3)),
        pitch_(round_up(dim_, 2 * kLanes<A>)),
        parts_(threads_for_elements(threads, 4 * op.z.numel())),
        frequencies_(pitch_ / 2),
        parameters_(4 * heads_ * pitch_),
        spaces_(parts_, pitch_) {
    frequencies_.zero();
    for (std::int64_t j = 0; j < dim_ / 2; ++j) {
      frequencies_.data()[j] = math::rope_frequency(op.rope_base, j, dim_);
    }
    parameters_.zero();
    for (std::int64_t row = 0; row < 2 * heads_; ++row) {
      const auto bytes = static_cast<std::size_t>(dim_) * sizeof(A);
      std::memcpy(parameters_.data() + row * pitch_, op.gamma.as<const A>() + row * dim_, bytes);
      std::memcpy(parameters_.data() + (2 * heads_ + row) * pitch_, op.beta.as<const A>() + row * dim_,
                  bytes);
    }
  }

  // Fills q and k, (B, L, H, Dz) of A, where there are tokens.
  void forward(const Tensor& q, const Tensor& k) const {
    for_heads([&](std::int64_t, const RotarySpace<A>& space, const Sequence& sequence, std::int64_t token,
                  std::int64_t head) {
      const A inverse = load_z(sequence, token, head, space.z);
      A* to_q = row_of<A>(q, sequence, token, head);
      A* to_k = row_of<A>(k, sequence, token, head);
      for_vectors<A>(dim_, [&](auto lanes, std::int64_t c, int) {
        const Vec<A> z = load(space.z + c) * inverse;
        lanes.write(to_q + c, space.rotation.turn(z * load(gamma(0, head) + c) + load(beta(0, head) + c), c));
        lanes.write(to_k + c, space.rotation.turn(z * load(gamma(1, head) + c) + load(beta(1, head) + c), c));
      });
    });
  }

  // From the gradients of q and k to those of z, gamma and beta:
  //   dz^ = dx_0 gamma[0] + dx_1 gamma[1]     dz = r (dz^ - z^ mean(dz^ z^))     r = rsqrt(mean(z^2) + eps)
  void backward(const Tensor& dq, const Tensor& dk, const Tensor& dz, const Tensor& dgamma,
                const Tensor& dbeta) const {
    const std::int64_t block = heads_ * pitch_;  // dgamma[0], dgamma[1], dbeta[0], dbeta[1]
    const ColumnSums<A> sums(parts_, 4 * block);
    for_heads([&](std::int64_t part, const RotarySpace<A>& space, const Sequence& sequence,
                  std::int64_t token, std::int64_t head) {
      const A inverse = load_z(sequence, token, head, space.z);
      const A* from_q = row_of<A>(dq, sequence, token, head);
      const A* from_k = row_of<A>(dk, sequence, token, head);
      A* sum = sums.block(part) + head * pitch_;
      SlotSums<A> product;
      for_vectors<A>(dim_, [&](auto lanes, std::int64_t c, int slot) {
        const Vec<A> z = load(space.z + c) * inverse;
        const Vec<A> dx0 = space.rotation.turn_back(lanes.read(from_q + c), c);
        const Vec<A> dx1 = space.rotation.turn_back(lanes.read(from_k + c), c);
        add(sum + c, dx0 * z);
        add(sum + block + c, dx1 * z);
        add(sum + 2 * block + c, dx0);
        add(sum + 3 * block + c, dx1);
        const Vec<A> dzn = dx0 * load(gamma(0, head) + c) + dx1 * load(gamma(1, head) + c);
        store(space.dz + c, dzn);
        store(space.z + c, z);
        product.slot[slot] += dzn * z;
      });
      const A mean = product.total() / static_cast<A>(dim_);
      with_rows(dz, sequence, token, head, [&](auto* to) {
        for_vectors<A>(dim_, [&](auto lanes, std::int64_t c, int) {
          lanes.write(to + c, (load(space.dz + c) - load(space.z + c) * mean) * inverse);
        });
      });
      if (head == heads_ - 1) sums.rows_added(part, 1);
    });
    Scratch<A> total(4 * block);
    sums.finish(0, parts_, 4 * block, total.data());
    for (std::int64_t row = 0; row < 2 * heads_; ++row) {
      const auto bytes = static_cast<std::size_t>(dim_) * sizeof(A);
      std::memcpy(dgamma.as<A>() + row * dim_, total.data() + row * pitch_, bytes);
      std::memcpy(dbeta.as<A>() + row * dim_, total.data() + 2 * block + row * pitch_, bytes);
    }
  }

 private:
  static void add(A* to, Vec<A> value) { store(to, load(to) + value); }

  const A* gamma(std::int64_t i, std::int64_t head) const {
    return parameters_.data() + (i * heads_ + head) * pitch_;
  }
  const A* beta(std::int64_t i, std::int64_t head) const { return gamma(i + 2, head); }

  template <class T>
  static T* row_of(const Tensor& tensor, const Sequence& sequence, std::int64_t token, std::int64_t head) {
    return tensor.as<T>() + sequence.row * tensor.stride(0) +
           position_of(sequence, token) * tensor.stride(1) + head * tensor.stride(2);
  }

  // f(row) with the row's storage type.
  template <class F>
  static void with_rows(const Tensor& tensor, const Sequence& sequence, std::int64_t token, std::int64_t head,
                        const F& f) {
    with_storage(tensor.dtype, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      if constexpr (std::is_same_v<Acc<T>, A>) f(row_of<T>(tensor, sequence, token, head));
    });
  }

  // Copies a row of z, zero up to the pitch, and returns rsqrt(mean(z^2) + eps).
  A load_z(const Sequence& sequence, std::int64_t token, std::int64_t head, A* to) const {
    SlotSums<A> squares;
    with_rows(op_.z, sequence, token, head, [&](auto* from) {
      for_vectors<A>(dim_, [&](auto lanes, std::int64_t c, int slot) {
        const Vec<A> z = lanes.read(from + c);
        squares.slot[slot] += z * z;
        store(to + c, z);
      });
    });
    return A(1) / square_root(squares.total() / static_cast<A>(dim_) + static_cast<A>(op_.eps));
  }

  // f(part, space, sequence, token, head) for every head of every token, with the token's rotation set. Parts
  // are contiguous runs of tokens of near-equal length.
  template <class F>
  void for_heads(const F& f) const {
    std::int64_t total = 0;
    for (std::int64_t i = 0; i < sequences_.count; ++i) total += sequences_.data[i].length;
    for_row_parts(total, parts_, [&](std::int64_t part, std::int64_t begin, std::int64_t end) {
      const RotarySpace<A> space = spaces_.at(part, pitch_);
      std::int64_t first = 0;  // of the sequence, among all tokens
      for (std::int64_t i = 0; i < sequences_.count && first < end; ++i) {
        const Sequence& sequence = sequences_.data[i];
        const std::int64_t prefix = initial_length(op_, i);
        const std::int64_t last = smaller(sequence.length, end - first);
        for (std::int64_t token = larger(0, begin - first); token < last; ++token) {
          space.rotation.set((prefix + token) % op_.chunk_size, frequencies_.data(), dim_ / 2);
          for (std::int64_t head = 0; head < heads_; ++head) f(part, space, sequence, token, head);
        }
        first += sequence.length;
      }
    });
  }

  const NormalizedAttention& op_;
  const SequenceSpan& sequences_;
  std::int64_t heads_, dim_, pitch_;
  int parts_;
  Scratch<double> frequencies_;
  Scratch<A> parameters_;
  Workspaces<RotarySpace<A>, A> spaces_;
};

}  // namespace megalodon::cpu::MEGALODON_TARGET
