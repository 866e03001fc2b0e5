// The third step of backward: the gradients of a tile, from the state it starts with and the lambda that
// comes back into it.
//
//   lambda_t = conj(gamma) dy_t + conj(q) lambda_{t+1}     dx_t = sum_k p_k Re(lambda_t,k) + omega dy_t
//   dp = sum_t Re(lambda_t) x_t     dq = sum_t lambda_t conj(h_{t-1})     dgamma = sum_t dy_t conj(h_t)
#pragma once

#include "ops/cema/scan.cuh"

namespace megalodon::cuda {

// A thread uses its own column only.
template <class A, class N>
struct CemaTileMemory {
  Shared<N> h;   // (tile, channels): after each token
  Shared<A> dx;  // (tile, channels): sum over the dims so far
};

// Adds what one tile gives to the gradients of dim k.
template <class T, template <class> class N, class A = Acc<T>>
MEGALODON_DEVICE void add_tile(const CemaArgs<T, N>& op, const CemaTileMemory<A, N<A>>& memory,
                               std::int64_t i, const Walk& at, std::int64_t d, std::int64_t k) {
  const std::int64_t coefficient = d * op.ndim + k, state = state_index(op, i, k, d);
  const N<A> q = load_coefficient<N<A>>(op.q, coefficient);
  const N<A> gamma = conj(load_coefficient<N<A>>(op.gamma, coefficient));
  const A p = op.p[coefficient];
  const N<A> start = load_number<N<A>>(Global<const A>(op.states), state, op.dim);
  N<A> carry = load_number<N<A>>(Global<const A>(op.lambdas), state, op.dim);
  int slot = thread_index();
  N<A> h = start;
  for (std::int64_t j = 0; j < at.tile.tokens; ++j, slot += kCemaChannels<A>) {
    h = add(multiply(q, h), from_real<N<A>>(p), A(read(token_of(op.tiles, at, op.x, j)[d])));
    memory.h[slot] = h;
  }
  A dp = 0;
  N<A> dq{}, dgamma{};
  for (std::int64_t j = at.tile.tokens; j-- > 0;) {
    slot -= kCemaChannels<A>;
    const A x = read(token_of(op.tiles, at, op.x, j)[d]), dy = read(token_of(op.tiles, at, op.dy, j)[d]);
    const N<A> lambda = add(carry, gamma, dy);
    const N<A> before = j > 0 ? memory.h[slot - kCemaChannels<A>] : start;
    dp += lambda.re * x;
    dq = add(dq, multiply(lambda, conj(before)));
    dgamma = add(dgamma, conj(memory.h[slot]), dy);
    memory.dx[slot] = (k == 0 ? A(0) : memory.dx[slot]) + p * lambda.re;
    carry = multiply(conj(q), lambda);
  }
  const std::int64_t sum = state_index(op, block_x(), k, d);
  op.dp[(block_x() * op.ndim + k) * op.dim + d] += dp;
  store_number(op.dq, sum, add(load_number<N<A>>(Global<const A>(op.dq), sum, op.dim), dq), op.dim);
  store_number(op.dgamma, sum, add(load_number<N<A>>(Global<const A>(op.dgamma), sum, op.dim), dgamma),
               op.dim);
}

// A block takes every blocks_x()-th tile and keeps one row of sums.
template <class T, template <class> class N>
MEGALODON_KERNEL void cema_gradients(CemaArgs<T, N> op) {
  using A = Acc<T>;
  SharedMemory shared;
  CemaTileMemory<A, N<A>> memory;
  memory.h = shared.take<N<A>>(kCemaTile * kCemaChannels<A>);
  memory.dx = shared.take<A>(kCemaTile * kCemaChannels<A>);
  const std::int64_t d = channel_of(op);
  if (d >= op.dim) return;
  for (std::int64_t k = 0; k < op.ndim; ++k) {
    op.dp[(block_x() * op.ndim + k) * op.dim + d] = 0;
    store_number(op.dq, state_index(op, block_x(), k, d), N<A>{}, op.dim);
    store_number(op.dgamma, state_index(op, block_x(), k, d), N<A>{}, op.dim);
  }
  const A omega = op.omega ? op.omega[d] : A(0);
  A domega = 0;
  for (std::int64_t i = block_x(); i < op.tiles.count; i += blocks_x()) {
    const Walk at = walk(op.tiles, i);
    for (std::int64_t k = 0; k < op.ndim; ++k) add_tile(op, memory, i, at, d, k);
    int slot = thread_index();
    for (std::int64_t j = 0; j < at.tile.tokens; ++j, slot += kCemaChannels<A>) {
      const A dy = read(token_of(op.tiles, at, op.dy, j)[d]);
      write(token_of(op.tiles, at, op.y, j)[d], memory.dx[slot] + omega * dy);
      domega += dy * A(read(token_of(op.tiles, at, op.x, j)[d]));
    }
  }
  if (op.domega) op.domega[block_x() * op.dim + d] = domega;
}

}  // namespace megalodon::cuda
