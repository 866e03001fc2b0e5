// The scan over time of complex exponential moving averages, vectorised over channels, forward.
//
// Within a tile the EMA dims are taken a few at a time, so that their states stay in registers, and of 32
// their coefficients too.
#pragma once

#include "cpu/kernels/cema_lanes.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// Runs K EMA dims from k on over `count` tokens of one vector of channels, updating their state.
// With kOutput, adds sum_k Re(gamma_k h_k) to y. With kKeep, writes the state before each token, and after
// the last one, to history[count + 1][K][2][W].
template <class A, int K, bool kOutput, bool kKeep>
inline void cema_scan(const A* x, A* y, std::int64_t count, std::int64_t tile_pitch, const A* coefficients,
                      A* state, std::int64_t pitch, std::int64_t k, A* history) {
  constexpr int W = kLanes<A>;
  const CemaGroup<A, K> of(coefficients, pitch, k);
  Vec<A> hr[K], hi[K];
  for (int j = 0; j < K; ++j) {
    hr[j] = load(state + (k + j) * 2 * pitch);
    hi[j] = load(state + (k + j) * 2 * pitch + pitch);
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
      const Vec<A> re =
          of.p[j] * xt + of.qr[j] * hr[j] - of.qi[j] * hi[j];  // p x first: it does not wait for h
      hi[j] = of.qr[j] * hi[j] + of.qi[j] * hr[j];
      hr[j] = re;
      if constexpr (kOutput) yt = yt + of.gr[j] * hr[j] - of.gi[j] * hi[j];
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

// All EMA dims and all vectors of a tile.
template <class A, bool kOutput>
inline void cema_scan_tile(const CemaLanes<A>& lanes, const A* x, A* y, std::int64_t count,
                           const A* coefficients, A* state, TileAhead ahead) {
  const std::int64_t rows_ahead = lanes.rows_ahead();
  for (std::int64_t c = 0; c < lanes.width; c += kLanes<A>) {
    for_groups<kCemaScanGroup>(lanes.ndim, [&](std::int64_t k, auto group) {
      ahead.bring(rows_ahead);
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

template <class A>
inline void cema_forward_as(const CemaForward& op, const SequenceSpan& sequences, int threads) {
  const CemaPlan plan(op.x.size(2), sequences.count, kLanes<A>, kCemaBlocks, threads);
  const std::int64_t pitch = plan.channels, ndim = op.p.size(1);
  const std::int64_t tile_size = kCemaTile * cema_tile_pitch<A>(pitch);
  const std::int64_t state_size = ndim * 2 * pitch;
  const std::int64_t block_size = pitch * (ndim * kCemaCoefficientCount + 1) + state_size;
  const std::int64_t per_thread = 2 * tile_size + plan.strip * block_size;
  const bool past_cache = plan.writes_past_cache(op.y);
  Scratch<A> scratch(per_thread * threads);
  parallel_for(plan.jobs(), threads, [&](std::int64_t job) {
    const CemaStrip<A> strip(op, plan, job % plan.strips());
    A* x = scratch.data() + thread_index() * per_thread;
    A* y = x + tile_size;
    A* blocks = y + tile_size;  // of each block its state, omega and coefficients
    const auto state_of = [=](std::int64_t b) { return blocks + b * block_size; };
    const auto omega_of = [=](std::int64_t b) { return state_of(b) + state_size; };
    const auto coefficients_of = [=](std::int64_t b) { return omega_of(b) + pitch; };
    strip.for_blocks([&](const CemaLanes<A>& lanes, std::int64_t b) {
      lanes.load_omega(op.omega, omega_of(b));
      lanes.load_coefficients(op, coefficients_of(b));
    });
    for_sequences(sequences, plan, job / plan.strips(), [&](std::int64_t index, const Sequence& sequence) {
      strip.for_blocks([&](const CemaLanes<A>& lanes, std::int64_t b) {
        lanes.load_state(op.initial_state, index, state_of(b));
      });
      for (std::int64_t tile = 0; tile * kCemaTile < sequence.length; ++tile) {
        strip.for_blocks([&](const CemaLanes<A>& lanes, std::int64_t b) {
          const std::int64_t count = lanes.tokens_of(sequence, tile);
          lanes.load_tokens(op.x, sequence, tile, x);
          cema_skip(lanes, omega_of(b), x, y, count);
          cema_scan_tile<A, true>(lanes, x, y, count, coefficients_of(b), state_of(b),
                                  strip.ahead(op.x, sequence, tile, b));
          lanes.store_tokens(y, op.y, sequence, tile, past_cache);
        });
      }
      strip.for_blocks([&](const CemaLanes<A>& lanes, std::int64_t b) {
        lanes.store_state(state_of(b), op.state, index);
      });
    });
  });
  zero_padding(op.y, sequences, threads);
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
