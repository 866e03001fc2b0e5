// Complex exponential moving average: a scan over time, vectorised over channels.
//
// A job owns a block of channels and a range of sequences, so parameter gradients need no atomics. Time is
// cut into tiles that stay in the first-level cache; within a tile the EMA dims are taken a few at a time, so
// that their states and coefficients stay in registers. The real EMA runs here with imaginary parts of zero.
#pragma once

#include "cpu/kernels/cema_step.h"

namespace megalodon::cpu::MEGALODON_TARGET {

inline constexpr std::int64_t kCemaForwardTile = 128;  // tokens
inline constexpr std::int64_t kCemaBackwardTile = 64;  // tokens between two checkpoints of the state
inline constexpr std::int64_t kCemaChannels = 64;      // channels of a job, at most
inline constexpr int kCemaForwardGroup = kRegisters >= 32 ? 4 : 2;  // EMA dims whose state is in registers
inline constexpr int kCemaBackwardGroup = kRegisters >= 32 ? 2 : 1;

enum CemaCoefficient { kP, kQRe, kQIm, kGammaRe, kGammaIm, kCemaCoefficientCount };

// How (channel, sequence) space is cut into jobs. Depends on the shape and the thread count only.
struct CemaPlan {
  std::int64_t channels, blocks, groups;

  CemaPlan(std::int64_t dim, std::int64_t sequences, std::int64_t lanes, int threads) {
    const std::int64_t wanted = threads > 1 ? 2 * threads : 1;
    channels = kCemaChannels;
    while (channels > lanes && (dim + channels - 1) / channels < wanted) channels /= 2;
    blocks = (dim + channels - 1) / channels;
    groups = blocks >= wanted ? 1 : (wanted + blocks - 1) / blocks;
    if (groups > sequences) groups = sequences;
  }
  std::int64_t jobs() const { return blocks * groups; }
};

// Between two tokens of a tile. One vector more than the channels, or a column of a tile would fall into a
// quarter of the sets of the first-level cache, and a few columns would not fit.
template <class A>
inline std::int64_t cema_tile_pitch(std::int64_t channels) {
  return channels + kLanes<A>;
}

// The part of the arrays that one job sees: lanes of `width` channels from `channel` on, as dense vectors.
template <class A>
struct CemaLanes {
  static constexpr int W = kLanes<A>;
  bool real;
  std::int64_t channel, width, ndim, vectors;

  CemaLanes(const Cema& op, const CemaPlan& plan, std::int64_t block)
      : real(op.real), channel(block * plan.channels), ndim(op.p.size(1)), vectors(plan.channels / W) {
    const std::int64_t left = op.x.size(2) - channel;
    width = left < plan.channels ? left : plan.channels;
  }

  std::int64_t pitch() const { return vectors * W; }
  std::int64_t tile_pitch() const { return cema_tile_pitch<A>(pitch()); }
  std::int64_t state_size() const { return ndim * 2 * pitch(); }

  // Reads part (0 real, 1 imaginary) of a contiguous (D, N) or (D, N, parts) array into to[ndim][pitch] with
  // the given distance between two EMA dims.
  void gather(const A* from, int parts, int part, A* to, std::int64_t step) const {
    for (std::int64_t k = 0; k < ndim; ++k) {
      for (std::int64_t c = 0; c < pitch(); ++c) {
        const bool present = c < width && part < parts && from != nullptr;
        to[k * step + c] = present ? from[((channel + c) * ndim + k) * parts + part] : A(0);
      }
    }
  }

  template <class From>
  void scatter(const From* from, std::int64_t step, A* to, int parts, int part) const {
    if (part >= parts) return;
    for (std::int64_t k = 0; k < ndim; ++k) {
      for (std::int64_t c = 0; c < width; ++c) {
        to[((channel + c) * ndim + k) * parts + part] = static_cast<A>(from[k * step + c]);
      }
    }
  }

  int parts() const { return real ? 1 : 2; }

  // state[ndim][2][pitch] <-> row `index` of a (count, D, N, 2) array; an absent array reads as zeros.
  void load_state(const Tensor& from, std::int64_t index, A* state) const {
    const A* row = from.defined() ? from.as<const A>() + index * from.stride(0) : nullptr;
    for (int part = 0; part < 2; ++part) gather(row, parts(), part, state + part * pitch(), 2 * pitch());
  }
  void store_state(const A* state, const Tensor& to, std::int64_t index) const {
    A* row = to.as<A>() + index * to.stride(0);
    for (int part = 0; part < 2; ++part) scatter(state + part * pitch(), 2 * pitch(), row, parts(), part);
  }

  // coefficients[ndim][kCemaCoefficientCount][pitch]
  void load_coefficients(const Cema& op, A* to) const {
    const std::int64_t step = kCemaCoefficientCount * pitch();
    gather(op.p.as<const A>(), 1, 0, to + kP * pitch(), step);
    gather(op.q.as<const A>(), parts(), 0, to + kQRe * pitch(), step);
    gather(op.q.as<const A>(), parts(), 1, to + kQIm * pitch(), step);
    gather(op.gamma.as<const A>(), parts(), 0, to + kGammaRe * pitch(), step);
    gather(op.gamma.as<const A>(), parts(), 1, to + kGammaIm * pitch(), step);
  }

  void load_omega(const Tensor& omega, A* to) const {
    for (std::int64_t c = 0; c < pitch(); ++c) {
      to[c] = omega.defined() && c < width ? omega.as<const A>()[channel + c] : A(0);
    }
  }
};

template <class A>
inline const A* cema_coefficient(const A* coefficients, std::int64_t pitch, std::int64_t k, int which) {
  return coefficients + (k * kCemaCoefficientCount + which) * pitch;
}

// Runs K EMA dims from k on over `count` tokens of one vector of channels, updating their state.
// With kOutput, adds sum_k Re(gamma_k h_k) to y. With kKeep, writes the state before each token, and after
// the last one, to history[count + 1][K][2][W].
template <class A, int K, bool kOutput, bool kKeep>
inline void cema_scan(const A* x, A* y, std::int64_t count, std::int64_t tile_pitch, const A* coefficients,
                      A* state, std::int64_t pitch, std::int64_t k, A* history) {
  constexpr int W = kLanes<A>;
  Vec<A> hr[K], hi[K], p[K], qr[K], qi[K], gr[K], gi[K];
  for (int j = 0; j < K; ++j) {
    hr[j] = load(state + (k + j) * 2 * pitch);
    hi[j] = load(state + (k + j) * 2 * pitch + pitch);
    p[j] = load(cema_coefficient(coefficients, pitch, k + j, kP));
    qr[j] = load(cema_coefficient(coefficients, pitch, k + j, kQRe));
    qi[j] = load(cema_coefficient(coefficients, pitch, k + j, kQIm));
    gr[j] = load(cema_coefficient(coefficients, pitch, k + j, kGammaRe));
    gi[j] = load(cema_coefficient(coefficients, pitch, k + j, kGammaIm));
  }
  for (std::int64_t t = 0; t < count; ++t) {
    const Vec<A> xt = load(x + t * tile_pitch);
    Vec<A> yt = kOutput ? load(y + t * tile_pitch) : Vec<A>{};
#pragma GCC unroll 4
    for (int j = 0; j < K; ++j) {
      if constexpr (kKeep) {
        store(history + (t * K + j) * 2 * W, hr[j]);
        store(history + (t * K + j) * 2 * W + W, hi[j]);
      }
      const Vec<A> re = p[j] * xt + qr[j] * hr[j] - qi[j] * hi[j];  // p x first: it does not wait for h
      hi[j] = qr[j] * hi[j] + qi[j] * hr[j];
      hr[j] = re;
      if constexpr (kOutput) yt = yt + gr[j] * hr[j] - gi[j] * hi[j];
    }
    if constexpr (kOutput) store(y + t * tile_pitch, yt);
  }
  for (int j = 0; j < K; ++j) {
    if constexpr (kKeep) {
      store(history + (count * K + j) * 2 * W, hr[j]);
      store(history + (count * K + j) * 2 * W + W, hi[j]);
    }
    store(state + (k + j) * 2 * pitch, hr[j]);
    store(state + (k + j) * 2 * pitch + pitch, hi[j]);
  }
}

// Calls f(k, K) over all EMA dims in groups of Group, then one by one; K is an integral constant.
template <int Value>
struct Constant {
  static constexpr int value = Value;
};
template <int Group, class F>
inline void for_groups(std::int64_t count, const F& f) {
  std::int64_t k = 0;
  for (; k + Group <= count; k += Group) f(k, Constant<Group>{});
  for (; k < count; ++k) f(k, Constant<1>{});
}

// All EMA dims and all vectors of a tile.
template <class A, bool kOutput>
inline void cema_scan_tile(const CemaLanes<A>& lanes, const A* x, A* y, std::int64_t count,
                           const A* coefficients, A* state) {
  for (std::int64_t c = 0; c < lanes.width; c += kLanes<A>) {
    for_groups<kCemaForwardGroup>(lanes.ndim, [&](std::int64_t k, auto group) {
      cema_scan<A, decltype(group)::value, kOutput, false>(x + c, kOutput ? y + c : nullptr, count,
                                                           lanes.tile_pitch(), coefficients + c, state + c,
                                                           lanes.pitch(), k, nullptr);
    });
  }
}

// to = omega * from over a tile
template <class A>
inline void cema_skip(const CemaLanes<A>& lanes, const A* omega, const A* from, A* to, std::int64_t count) {
  for (std::int64_t t = 0; t < count; ++t) {
    for (std::int64_t c = 0; c < lanes.pitch(); c += kLanes<A>) {
      const std::int64_t i = t * lanes.tile_pitch() + c;
      store(to + i, load(omega + c) * load(from + i));
    }
  }
}

// Sequences [begin, end) of group g.
template <class F>
inline void for_sequences(const SequenceSpan& sequences, const CemaPlan& plan, std::int64_t group,
                          const F& f) {
  const std::int64_t end = sequences.count * (group + 1) / plan.groups;
  for (std::int64_t i = sequences.count * group / plan.groups; i < end; ++i) f(i, sequences.data[i]);
}

template <class A>
inline void cema_forward_as(const CemaForward& op, const SequenceSpan& sequences, int threads) {
  constexpr std::int64_t T = kCemaForwardTile;
  const CemaPlan plan(op.x.size(2), sequences.count, kLanes<A>, threads);
  const std::int64_t pitch = plan.channels, tile_pitch = cema_tile_pitch<A>(pitch), ndim = op.p.size(1);
  const std::int64_t per_thread = pitch * (ndim * (kCemaCoefficientCount + 2) + 1) + 2 * T * tile_pitch;
  Scratch<A> scratch(per_thread * threads);
  parallel_for(plan.jobs(), threads, [&](std::int64_t job) {
    const CemaLanes<A> lanes(op, plan, job % plan.blocks);
    A* coefficients = scratch.data() + thread_index() * per_thread;
    A* state = coefficients + ndim * kCemaCoefficientCount * pitch;
    A* omega = state + lanes.state_size();
    A* x = omega + pitch;
    A* y = x + T * tile_pitch;
    lanes.load_coefficients(op, coefficients);
    lanes.load_omega(op.omega, omega);
    for_sequences(sequences, plan, job / plan.blocks, [&](std::int64_t index, const Sequence& sequence) {
      lanes.load_state(op.initial_state, index, state);
      for (std::int64_t t = 0; t < sequence.length; t += T) {
        const std::int64_t count = sequence.length - t < T ? sequence.length - t : T;
        load_tile(op.x, sequence, t, count, lanes.channel, lanes.width, x, tile_pitch);
        cema_skip(lanes, omega, x, y, count);
        cema_scan_tile<A, true>(lanes, x, y, count, coefficients, state);
        store_tile(op.y, sequence, t, count, lanes.channel, lanes.width, y, tile_pitch);
      }
      lanes.store_state(state, op.state, index);
    });
  });
  zero_padding(op.y, sequences, threads);
}

// Parameter gradients of one job, summed in double: of_coefficients[ndim][kCemaCoefficientCount][pitch], then
// of_omega[pitch].
inline std::int64_t cema_gradient_size(std::int64_t ndim, std::int64_t pitch) {
  return pitch * (ndim * kCemaCoefficientCount + 1);
}

// One tile backwards for K EMA dims of one vector of channels: adds to dx, updates the carry
// conj(q) lambda_{t+1}, adds the tile's parameter gradients to sums.
template <class A, int K>
inline void cema_reverse(const A* x, const A* dy, A* dx, std::int64_t count, std::int64_t tile_pitch,
                         const A* coefficients, const A* history, A* carry, std::int64_t pitch,
                         std::int64_t k, double* sums) {
  constexpr int W = kLanes<A>;
  Vec<A> cr[K], ci[K], p[K], qr[K], qi[K], gr[K], gi[K];
  Vec<A> dp[K] = {}, dqr[K] = {}, dqi[K] = {}, dgr[K] = {}, dgi[K] = {};
  for (int j = 0; j < K; ++j) {
    cr[j] = load(carry + (k + j) * 2 * pitch);
    ci[j] = load(carry + (k + j) * 2 * pitch + pitch);
    p[j] = load(cema_coefficient(coefficients, pitch, k + j, kP));
    qr[j] = load(cema_coefficient(coefficients, pitch, k + j, kQRe));
    qi[j] = load(cema_coefficient(coefficients, pitch, k + j, kQIm));
    gr[j] = load(cema_coefficient(coefficients, pitch, k + j, kGammaRe));
    gi[j] = load(cema_coefficient(coefficients, pitch, k + j, kGammaIm));
  }
  for (std::int64_t t = count - 1; t >= 0; --t) {
    const Vec<A> xt = load(x + t * tile_pitch), dyt = load(dy + t * tile_pitch);
    Vec<A> dxt = load(dx + t * tile_pitch);
#pragma GCC unroll 2
    for (int j = 0; j < K; ++j) {
      const A* before = history + (t * K + j) * 2 * W;
      const A* after = before + K * 2 * W;
      const Vec<A> lr = gr[j] * dyt + cr[j], li = ci[j] - gi[j] * dyt;
      dxt += p[j] * lr;
      dp[j] += lr * xt;
      dgr[j] += dyt * load(after);
      dgi[j] -= dyt * load(after + W);
      const Vec<A> hr = load(before), hi = load(before + W);
      dqr[j] = dqr[j] + lr * hr + li * hi;
      dqi[j] = dqi[j] + li * hr - lr * hi;
      cr[j] = qr[j] * lr + qi[j] * li;
      ci[j] = qr[j] * li - qi[j] * lr;
    }
    store(dx + t * tile_pitch, dxt);
  }
  for (int j = 0; j < K; ++j) {
    store(carry + (k + j) * 2 * pitch, cr[j]);
    store(carry + (k + j) * 2 * pitch + pitch, ci[j]);
    double* sum = sums + (k + j) * kCemaCoefficientCount * pitch;
    add_lanes(sum + kP * pitch, dp[j]);
    add_lanes(sum + kQRe * pitch, dqr[j]);
    add_lanes(sum + kQIm * pitch, dqi[j]);
    add_lanes(sum + kGammaRe * pitch, dgr[j]);
    add_lanes(sum + kGammaIm * pitch, dgi[j]);
  }
}

template <class A>
inline void cema_omega_gradient(const CemaLanes<A>& lanes, const A* x, const A* dy, std::int64_t count,
                                double* sums) {
  const std::int64_t pitch = lanes.tile_pitch();
  for (std::int64_t c = 0; c < lanes.pitch(); c += kLanes<A>) {
    Vec<A> sum{};
    for (std::int64_t t = 0; t < count; ++t) sum += load(x + t * pitch + c) * load(dy + t * pitch + c);
    add_lanes(sums + c, sum);
  }
}

// Writes the sum over groups of one job's channels to the gradient arrays.
template <class A>
inline void cema_store_gradients(const CemaBackward& op, const CemaPlan& plan, const CemaLanes<A>& lanes,
                                 double* block, std::int64_t stride) {
  const std::int64_t size = cema_gradient_size(lanes.ndim, lanes.pitch());
  for (std::int64_t group = 1; group < plan.groups; ++group) {
    for (std::int64_t i = 0; i < size; ++i) block[i] += block[group * stride + i];
  }
  const std::int64_t pitch = lanes.pitch(), step = kCemaCoefficientCount * pitch;
  lanes.scatter(block + kP * pitch, step, op.dp.as<A>(), 1, 0);
  lanes.scatter(block + kQRe * pitch, step, op.dq.as<A>(), lanes.parts(), 0);
  lanes.scatter(block + kQIm * pitch, step, op.dq.as<A>(), lanes.parts(), 1);
  lanes.scatter(block + kGammaRe * pitch, step, op.dgamma.as<A>(), lanes.parts(), 0);
  lanes.scatter(block + kGammaIm * pitch, step, op.dgamma.as<A>(), lanes.parts(), 1);
  if (!op.omega.defined()) return;
  for (std::int64_t c = 0; c < lanes.width; ++c) {
    op.domega.as<A>()[lanes.channel + c] = static_cast<A>(block[lanes.ndim * step + c]);
  }
}

template <class A>
inline void cema_backward_as(const CemaBackward& op, const SequenceSpan& sequences, int threads) {
  constexpr std::int64_t T = kCemaBackwardTile;
  const CemaPlan plan(op.x.size(2), sequences.count, kLanes<A>, threads);
  const std::int64_t pitch = plan.channels, tile_pitch = cema_tile_pitch<A>(pitch);
  const std::int64_t ndim = op.p.size(1), state_size = ndim * 2 * pitch;
  const std::int64_t checkpoints = (sequences.longest + T - 1) / T;
  const std::int64_t history_size = (T + 1) * kCemaBackwardGroup * 2 * kLanes<A>;
  const std::int64_t per_thread = pitch * (ndim * kCemaCoefficientCount + 1) + 3 * T * tile_pitch +
                                  history_size + state_size * (checkpoints + 2);
  Scratch<A> scratch(per_thread * threads);
  const std::int64_t block_size = cema_gradient_size(ndim, pitch);
  Scratch<double> gradients(block_size * plan.jobs());
  gradients.zero();
  parallel_for(plan.jobs(), threads, [&](std::int64_t job) {
    const CemaLanes<A> lanes(op, plan, job % plan.blocks);
    A* coefficients = scratch.data() + thread_index() * per_thread;
    A* omega = coefficients + ndim * kCemaCoefficientCount * pitch;
    A* x = omega + pitch;
    A* dy = x + T * tile_pitch;
    A* dx = dy + T * tile_pitch;
    A* history = dx + T * tile_pitch;
    A* carry = history + history_size;
    A* state = carry + state_size;
    A* checkpoint = state + state_size;
    double* sums = gradients.data() + job * block_size;
    double* omega_sums = sums + ndim * kCemaCoefficientCount * pitch;
    lanes.load_coefficients(op, coefficients);
    lanes.load_omega(op.omega, omega);
    for_sequences(sequences, plan, job / plan.blocks, [&](std::int64_t index, const Sequence& sequence) {
      const std::int64_t tiles = (sequence.length + T - 1) / T;
      lanes.load_state(op.initial_state, index, state);
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        std::memcpy(checkpoint + tile * state_size, state, static_cast<std::size_t>(state_size) * sizeof(A));
        if (tile + 1 == tiles) break;
        load_tile(op.x, sequence, tile * T, T, lanes.channel, lanes.width, x, tile_pitch);
        cema_scan_tile<A, false>(lanes, x, static_cast<A*>(nullptr), T, coefficients, state);
      }
      lanes.load_state(op.dstate, index, carry);
      for (std::int64_t tile = tiles - 1; tile >= 0; --tile) {
        const std::int64_t left = sequence.length - tile * T, count = left < T ? left : T;
        load_tile(op.x, sequence, tile * T, count, lanes.channel, lanes.width, x, tile_pitch);
        load_tile(op.dy, sequence, tile * T, count, lanes.channel, lanes.width, dy, tile_pitch);
        cema_skip(lanes, omega, dy, dx, count);
        cema_omega_gradient(lanes, x, dy, count, omega_sums);
        for (std::int64_t c = 0; c < lanes.width; c += kLanes<A>) {
          for_groups<kCemaBackwardGroup>(ndim, [&](std::int64_t k, auto group) {
            constexpr int K = decltype(group)::value;
            cema_scan<A, K, false, true>(x + c, nullptr, count, tile_pitch, coefficients + c,
                                         checkpoint + tile * state_size + c, pitch, k, history);
            cema_reverse<A, K>(x + c, dy + c, dx + c, count, tile_pitch, coefficients + c, history, carry + c,
                               pitch, k, sums + c);
          });
        }
        store_tile(op.dx, sequence, tile * T, count, lanes.channel, lanes.width, dx, tile_pitch);
      }
      if (op.initial_state.defined()) lanes.store_state(carry, op.dinitial_state, index);
    });
  });
  for (std::int64_t block = 0; block < plan.blocks; ++block) {
    cema_store_gradients(op, plan, CemaLanes<A>(op, plan, block), gradients.data() + block * block_size,
                         plan.blocks * block_size);
  }
  zero_padding(op.dx, sequences, threads);
}

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
