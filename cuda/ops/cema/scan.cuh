// The moving average as a scan over tiles of time. A thread owns a channel.
//
//   1 end_states      the state each tile ends with if it starts from zero      all tiles at once
//   2 carry_states    the state each tile really starts with, from tile to tile  all (channel, k) at once
//   3 outputs         the tile again, from its state                            all tiles at once
//
// Backward adds the same two steps for lambda, from the last tile to the first, before its own third step.
#pragma once

#include "common/sequences.cuh"
#include "common/types.cuh"
#include "ops/cema/number.cuh"

namespace megalodon::cuda {

inline constexpr int kCemaTile = 64;  // tokens
inline constexpr int kCemaDims = 8;   // EMA dims that a thread keeps in registers at a time
inline constexpr int kCarryThreads = 128;

// Channels of a block: as many as leave a tile of states (backward) inside shared memory.
template <class A>
inline constexpr int kCemaChannels = 256 / static_cast<int>(sizeof(A));

// N is Real or Complex.
template <class T, template <class> class N>
struct CemaArgs {
  using A = Acc<T>;
  Tiles tiles;
  Tokens<const T> x, dy;
  Tokens<T> y;  // y, or dx
  Global<const A> p, q, gamma, omega, initial;
  std::int64_t dim, ndim;
  Global<A> states;   // (tiles, N, parts, D): what a tile starts with; absent where a sequence is one tile
  Global<A> lambdas;  // the same for conj(q) lambda of the token after the tile
  Global<A> final_state;
  // Backward: one row of sums per block along x, D last.
  Global<A> dp, dq, dgamma, domega;
};

template <class T, template <class> class N>
MEGALODON_DEVICE std::int64_t channel_of(const CemaArgs<T, N>&) {
  return block_y() * kCemaChannels<Acc<T>> + thread_index();
}

// Index of dim k of channel d of a tile in `states` and `lambdas`; the parts lie D apart.
template <class T, template <class> class N>
MEGALODON_DEVICE std::int64_t state_index(const CemaArgs<T, N>& op, std::int64_t tile, std::int64_t k,
                                          std::int64_t d) {
  return (tile * op.ndim + k) * N<Acc<T>>::parts * op.dim + d;
}

// A parameter or a state of the caller: (rows, D, N, parts).
template <class N, class A>
MEGALODON_DEVICE N load_coefficient(const Global<const A>& from, std::int64_t i) {
  return load_number<N>(from, i * N::parts);
}

// One tile as a thread walks it.
struct Walk {
  Tile tile;
  Sequence sequence;
};

MEGALODON_DEVICE Walk walk(const Tiles& tiles, std::int64_t i) {
  const Tile tile = tile_at(tiles, i);
  return {tile, sequence_at(tiles.sequences, tile.sequence)};
}

// Where token j of the tile starts.
template <class T>
MEGALODON_DEVICE Global<T> token_of(const Tiles& tiles, const Walk& at, const Tokens<T>& tokens,
                                    std::int64_t j) {
  return token(tokens, at.sequence.row, time_of(tiles.sequences, at.sequence, at.tile.first + j));
}

template <class T, template <class> class N>
MEGALODON_KERNEL void end_states(CemaArgs<T, N> op) {
  using A = Acc<T>;
  const std::int64_t d = channel_of(op);
  if (d >= op.dim) return;
  const Walk at = walk(op.tiles, block_x());
  for (std::int64_t first = 0; first < op.ndim; first += kCemaDims) {
    N<A> h[kCemaDims] = {}, q[kCemaDims] = {};
    A p[kCemaDims] = {};
#pragma unroll
    for (int k = 0; k < kCemaDims; ++k) {
      if (first + k >= op.ndim) continue;
      q[k] = load_coefficient<N<A>>(op.q, d * op.ndim + first + k);
      p[k] = op.p[d * op.ndim + first + k];
    }
    for (std::int64_t j = 0; j < at.tile.tokens; ++j) {
      const A x = read(token_of(op.tiles, at, op.x, j)[d]);
#pragma unroll
      for (int k = 0; k < kCemaDims; ++k) h[k] = add(multiply(q[k], h[k]), from_real<N<A>>(p[k]), x);
    }
#pragma unroll
    for (int k = 0; k < kCemaDims; ++k) {
      if (first + k < op.ndim)
        store_number(op.states, state_index(op, block_x(), first + k, d), h[k], op.dim);
    }
  }
}

// conj(q) lambda of each tile's first token, if nothing comes from the tiles after it.
template <class T, template <class> class N>
MEGALODON_KERNEL void end_lambdas(CemaArgs<T, N> op) {
  using A = Acc<T>;
  const std::int64_t d = channel_of(op);
  if (d >= op.dim) return;
  const Walk at = walk(op.tiles, block_x());
  for (std::int64_t first = 0; first < op.ndim; first += kCemaDims) {
    N<A> carry[kCemaDims] = {}, q[kCemaDims] = {}, gamma[kCemaDims] = {};
#pragma unroll
    for (int k = 0; k < kCemaDims; ++k) {
      if (first + k >= op.ndim) continue;
      q[k] = conj(load_coefficient<N<A>>(op.q, d * op.ndim + first + k));
      gamma[k] = conj(load_coefficient<N<A>>(op.gamma, d * op.ndim + first + k));
    }
    for (std::int64_t j = at.tile.tokens; j-- > 0;) {
      const A dy = read(token_of(op.tiles, at, op.dy, j)[d]);
#pragma unroll
      for (int k = 0; k < kCemaDims; ++k) carry[k] = multiply(q[k], add(carry[k], gamma[k], dy));
    }
#pragma unroll
    for (int k = 0; k < kCemaDims; ++k) {
      if (first + k < op.ndim) {
        store_number(op.lambdas, state_index(op, block_x(), first + k, d), carry[k], op.dim);
      }
    }
  }
}

template <class A>
struct CarryArgs {
  Tiles tiles;
  Global<const A> q;
  Global<const A> start;  // (sequences, D, N, parts) or absent, which is 0
  Global<A> states;       // what tiles end with becomes what they start with
  Global<A> end;          // (sequences, D, N, parts) or absent
  std::int64_t dim, ndim;
  bool backward;  // from the last tile to the first, with conj(q)
};

// Carries in double: a rounding of the state itself is all that is lost from tile to tile.
template <class A, template <class> class N>
MEGALODON_KERNEL void carry_states(CarryArgs<A> op) {
  constexpr int parts = N<A>::parts;
  const std::int64_t i = block_x() * kCarryThreads + thread_index();
  if (i >= op.tiles.sequences.count * op.ndim * op.dim) return;
  const std::int64_t d = i % op.dim, k = i / op.dim % op.ndim, s = i / op.dim / op.ndim;
  const auto widen = [](N<A> a) {
    N<double> wide{};
    wide.re = a.re;
    if constexpr (parts == 2) wide.im = a.im;
    return wide;
  };
  N<double> q = widen(load_coefficient<N<A>>(op.q, d * op.ndim + k));
  if (op.backward) q = conj(q);
  const std::int64_t state = ((s * op.dim + d) * op.ndim + k) * parts;
  N<double> h{};
  if (op.start) h = widen(load_number<N<A>>(op.start, state));
  const std::int64_t length = sequence_at(op.tiles.sequences, s).length, size = op.tiles.size;
  const std::int64_t count = (length + size - 1) / size, first = first_tile(op.tiles, s);
  const N<double> whole = power(q, size), last = power(q, length - (count - 1) * size);
  for (std::int64_t step = 0; step < count; ++step) {
    const std::int64_t tile = op.backward ? count - 1 - step : step;
    const std::int64_t at = ((first + tile) * op.ndim + k) * parts * op.dim + d;
    const N<double> end = widen(load_number<N<A>>(Global<const A>(op.states), at, op.dim));
    store_number(op.states, at, h, op.dim);
    h = add(end, multiply(tile == count - 1 ? last : whole, h));
  }
  if (op.end) store_number(op.end, state, h);
}

// y and, where each sequence is one tile, the final state too.
template <class T, template <class> class N>
MEGALODON_KERNEL void cema_outputs(CemaArgs<T, N> op) {
  using A = Acc<T>;
  SharedMemory memory;
  const Shared<A> sums = memory.take<A>(kCemaTile * kCemaChannels<A>);  // of y over the dims so far
  const std::int64_t d = channel_of(op);
  if (d >= op.dim) return;
  const Walk at = walk(op.tiles, block_x());
  const A omega = op.omega ? op.omega[d] : A(0);
  for (std::int64_t first = 0; first < op.ndim; first += kCemaDims) {
    N<A> h[kCemaDims] = {}, q[kCemaDims] = {}, gamma[kCemaDims] = {};
    A p[kCemaDims] = {};
#pragma unroll
    for (int k = 0; k < kCemaDims; ++k) {
      if (first + k >= op.ndim) continue;
      const std::int64_t i = d * op.ndim + first + k;
      q[k] = load_coefficient<N<A>>(op.q, i);
      gamma[k] = load_coefficient<N<A>>(op.gamma, i);
      p[k] = op.p[i];
      if (op.states) {
        h[k] =
            load_number<N<A>>(Global<const A>(op.states), state_index(op, block_x(), first + k, d), op.dim);
      } else if (op.initial) {
        h[k] = load_coefficient<N<A>>(op.initial, at.tile.sequence * op.dim * op.ndim + i);
      }
    }
    const bool last = first + kCemaDims >= op.ndim;
    for (std::int64_t j = 0; j < at.tile.tokens; ++j) {
      const A x = read(token_of(op.tiles, at, op.x, j)[d]);
      const int slot = static_cast<int>(j) * kCemaChannels<A> + thread_index();
      A sum = first == 0 ? A(0) : sums[slot];
#pragma unroll
      for (int k = 0; k < kCemaDims; ++k) {
        h[k] = add(multiply(q[k], h[k]), from_real<N<A>>(p[k]), x);
        sum += real_product(gamma[k], h[k]);
      }
      if (last) {
        write(token_of(op.tiles, at, op.y, j)[d], sum + omega * x);
      } else {
        sums[slot] = sum;
      }
    }
    if (op.states) continue;
#pragma unroll
    for (int k = 0; k < kCemaDims; ++k) {
      const std::int64_t i = (at.tile.sequence * op.dim + d) * op.ndim + first + k;
      if (first + k < op.ndim) store_number(op.final_state, i * N<A>::parts, h[k]);
    }
  }
}

}  // namespace megalodon::cuda
