// The gradients of the scan: backwards over time, tile by tile, from states that are computed again.
#pragma once

#include "cpu/kernels/cema_scan.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// Parameter gradients of one job, summed in double: of_coefficients[ndim][kCemaCoefficientCount][pitch], then
// of_omega[pitch].
inline std::int64_t cema_gradient_size(std::int64_t ndim, std::int64_t pitch) {
  return pitch * (ndim * kCemaCoefficientCount + 1);
}

// One tile backwards for K EMA dims of one vector of channels: adds to dx, updates the carry
// conj(q) lambda_{t+1}, adds the tile's parameter gradients to sums. The history is of Kept dims, these K
// first.
template <class A, int K, int Kept>
inline void cema_reverse(const A* x, const A* dy, A* dx, std::int64_t count, std::int64_t tile_pitch,
                         const A* coefficients, const A* history, A* carry, std::int64_t pitch,
                         std::int64_t k, double* sums) {
  constexpr int W = kLanes<A>;
  const CemaGroup<A, K> of(coefficients, pitch, k);
  Vec<A> cr[K], ci[K];
  Vec<A> dp[K] = {}, dqr[K] = {}, dqi[K] = {}, dgr[K] = {}, dgi[K] = {};
  for (int j = 0; j < K; ++j) {
    cr[j] = load(carry + (k + j) * 2 * pitch);
    ci[j] = load(carry + (k + j) * 2 * pitch + pitch);
  }
  for (std::int64_t t = count - 1; t >= 0; --t) {
    const Vec<A> xt = load(x + t * tile_pitch), dyt = load(dy + t * tile_pitch);
    Vec<A> dxt = load(dx + t * tile_pitch);
#pragma GCC unroll 2
    for (int j = 0; j < K; ++j) {
      const A* before = history + (t * Kept + j) * 2 * W;
      const A* after = before + Kept * 2 * W;
      const Vec<A> lr = of.gr[j] * dyt + cr[j], li = ci[j] - of.gi[j] * dyt;
      dxt += of.p[j] * lr;
      dp[j] += lr * xt;
      dgr[j] += dyt * load(after);
      dgi[j] -= dyt * load(after + W);
      const Vec<A> hr = load(before), hi = load(before + W);
      dqr[j] = dqr[j] + lr * hr + li * hi;
      dqi[j] = dqi[j] + li * hr - lr * hi;
      cr[j] = of.qr[j] * lr + of.qi[j] * li;
      ci[j] = of.qr[j] * li - of.qi[j] * lr;
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
  const CemaPlan plan(op.x.size(2), sequences.count, kLanes<A>, 1, threads);
  const std::int64_t pitch = plan.channels, tile_pitch = cema_tile_pitch<A>(pitch);
  const std::int64_t tile_size = kCemaTile * tile_pitch;
  const std::int64_t ndim = op.p.size(1), state_size = ndim * 2 * pitch;
  const std::int64_t checkpoints = (sequences.longest + kCemaTile - 1) / kCemaTile;
  const std::int64_t history_size = (kCemaTile + 1) * kCemaScanGroup * 2 * kLanes<A>;
  const std::int64_t per_thread = pitch * (ndim * kCemaCoefficientCount + 1) + 3 * tile_size + history_size +
                                  state_size * (checkpoints + 2);
  const bool past_cache = plan.writes_past_cache(op.dx);
  Scratch<A> scratch(per_thread * threads);
  const std::int64_t block_size = cema_gradient_size(ndim, pitch);
  Scratch<double> gradients(block_size * plan.jobs());
  gradients.zero();
  parallel_for(plan.jobs(), threads, [&](std::int64_t job) {
    const CemaLanes<A> lanes(op, plan, job % plan.blocks);
    A* coefficients = scratch.data() + thread_index() * per_thread;
    A* omega = coefficients + ndim * kCemaCoefficientCount * pitch;
    A* x = omega + pitch;
    A* dy = x + tile_size;
    A* dx = dy + tile_size;
    A* history = dx + tile_size;
    A* carry = history + history_size;
    A* state = carry + state_size;
    A* checkpoint = state + state_size;
    double* sums = gradients.data() + job * block_size;
    double* omega_sums = sums + ndim * kCemaCoefficientCount * pitch;
    const std::int64_t rows_ahead = lanes.rows_ahead();
    lanes.load_coefficients(op, coefficients);
    lanes.load_omega(op.omega, omega);
    for_sequences(sequences, plan, job / plan.blocks, [&](std::int64_t index, const Sequence& sequence) {
      const std::int64_t tiles = (sequence.length + kCemaTile - 1) / kCemaTile;
      lanes.load_state(op.initial_state, index, state);
      for (std::int64_t tile = 0; tile < tiles; ++tile) {
        std::memcpy(checkpoint + tile * state_size, state, static_cast<std::size_t>(state_size) * sizeof(A));
        if (tile + 1 == tiles) break;
        lanes.load_tokens(op.x, sequence, tile, x);
        cema_scan_tile<A, false>(lanes, x, static_cast<A*>(nullptr), kCemaTile, coefficients, state,
                                 lanes.ahead(op.x, sequence, tile + 1));
      }
      lanes.load_state(op.dstate, index, carry);
      for (std::int64_t tile = tiles - 1; tile >= 0; --tile) {
        const std::int64_t count = lanes.tokens_of(sequence, tile);
        lanes.load_tokens(op.x, sequence, tile, x);
        lanes.load_tokens(op.dy, sequence, tile, dy);
        cema_skip(lanes, omega, dy, dx, count);
        cema_omega_gradient(lanes, x, dy, count, omega_sums);
        TileAhead x_ahead = lanes.ahead(op.x, sequence, tile - 1);
        TileAhead dy_ahead = lanes.ahead(op.dy, sequence, tile - 1);
        for (std::int64_t c = 0; c < lanes.width; c += kLanes<A>) {
          for_groups<kCemaScanGroup>(ndim, [&](std::int64_t first, auto group) {
            constexpr int kKept = decltype(group)::value;
            A* before = checkpoint + tile * state_size + c;
            for (std::int64_t j = 2 * first; tile > 0 && j < 2 * (first + kKept); ++j) {
              prefetch(before - state_size + j * pitch);  // what this scan will start from in the next tile
            }
            x_ahead.bring(rows_ahead);
            dy_ahead.bring(rows_ahead);
            cema_scan<A, kKept, false, true>(x + c, nullptr, count, tile_pitch, coefficients + c, before,
                                             pitch, first, history);
            for_groups<kCemaReverseGroup>(kKept, [&](std::int64_t j, auto part) {
              cema_reverse<A, decltype(part)::value, kKept>(x + c, dy + c, dx + c, count, tile_pitch,
                                                            coefficients + c, history + j * 2 * kLanes<A>,
                                                            carry + c, pitch, first + j, sums + c);
            });
          });
        }
        lanes.store_tokens(dx, op.dx, sequence, tile, past_cache);
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

}  // namespace megalodon::cpu::MEGALODON_TARGET
