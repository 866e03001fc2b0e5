// Blocks that pass a value along a chain inside one launch (decoupled look-back, Merrill and Garland 2016).
// Each link has a value of its own, and the value upto it: join(upto the link before, own). A block tells its
// own value as soon as it knows it, and the value upto it once it knows what came before. So a late block
// takes the last value upto a link that is known and joins the own values since; it need not wait for
// each link in turn.
//
// The joins are the same ones in the same order, whichever values were there already: the same bits come out,
// provided that `join` leaves the compiler no choice of rounding (rounded_product).
//
// A block that waits holds its place on the GPU, so what it waits for must have started. Blocks therefore
// take their links by ticket.
#pragma once

#include "common/reduce.cuh"
#include "common/run.cuh"

namespace megalodon::cuda {

inline constexpr std::int32_t kOwn = 1, kUpto = 2;  // what of a link can be read

// The value of a link: N doubles.
template <int N>
struct Link {
  double part[N];
};

struct Chain {
  Global<std::int32_t> ticket;  // a counter; absent where every chain is one link long
  Global<std::int32_t> state;   // (links,)
  Global<double> own, upto;     // (links, parts)
};

struct ClearFlagsArgs {
  Global<std::int32_t> flags;
  std::int64_t count;
};

inline constexpr int kClearFlagsThreads = 256;

MEGALODON_KERNEL void clear_flags(ClearFlagsArgs op) {
  const std::int64_t i = block_x() * kClearFlagsThreads + thread_index();
  if (i < op.count) op.flags[i] = 0;
}

// `links` links of one or several chains, of N doubles each.
template <int N>
Chain make_chain(Run& run, std::int64_t links) {
  const Global<std::int32_t> flags = run.workspace<std::int32_t>(links + 1);
  run.launch(clear_flags, {divide_up(links + 1, kClearFlagsThreads)}, kClearFlagsThreads, 0,
             ClearFlagsArgs{flags, links + 1});
  return {flags, flags + 1, run.workspace<double>(links * N), run.workspace<double>(links * N)};
}

// The number of this block by the order in which blocks start. `shared` has one element.
MEGALODON_DEVICE std::int64_t block_ticket(const Chain& chain, const Shared<std::int32_t>& shared) {
  if (!chain.ticket) return block_x();
  if (thread_index() == 0) shared[0] = take_ticket(chain.ticket);
  block_barrier();
  return shared[0];
}

template <int N>
MEGALODON_DEVICE Link<N> read_link(const Global<double>& from, std::int64_t i) {
  Link<N> link;
#pragma unroll
  for (int n = 0; n < N; ++n) link.part[n] = from[i * N + n];
  return link;
}

// By one thread: tells what link i has of its own, or upto it.
template <int N>
MEGALODON_DEVICE void tell(const Chain& chain, std::int64_t i, std::int32_t what, const Link<N>& value) {
  const Global<double> to = what == kOwn ? chain.own : chain.upto;
#pragma unroll
  for (int n = 0; n < N; ++n) to[i * N + n] = value.part[n];
  publish(chain.state + i, what);
}

// The least of the lanes' numbers.
MEGALODON_DEVICE int warp_least(int value) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const int other = warp_shuffle(value, lane_index() ^ step);
    if (other < value) value = other;
  }
  return value;
}

// The value upto the link before link i, by a whole warp. Link i - k stride is the k-th before it, for
// k in [1, before]. Lane k - 1 reads that link; prepare(link value, k) makes of its own value what join
// needs.
template <int N, int M, class Prepare, class Join>
MEGALODON_DEVICE Link<N> look_back(const Chain& chain, std::int64_t i, std::int64_t stride,
                                   std::int64_t before, const Prepare& prepare, const Join& join) {
  const int reach = before < kWarp ? static_cast<int>(before) : kWarp, lane = lane_index();
  const std::int64_t at = i - (lane + 1) * stride;
  std::int32_t state = lane < reach ? wait_for(chain.state + at, kOwn) : 0;
  int found = warp_least(state == kUpto ? lane : kWarp);
  if (found == kWarp) {  // as far back as the warp sees, nothing is joined yet
    found = reach - 1;
    if (lane == found) wait_for(chain.state + at, kUpto);
  }
  Link<N> value{};
  Link<M> prepared{};
  if (lane == found) value = read_link<N>(chain.upto, at);
  if (lane < found) prepared = prepare(read_link<N>(chain.own, at), lane + 1);
#pragma unroll
  for (int n = 0; n < N; ++n) value.part[n] = warp_shuffle(value.part[n], found);
  for (int from = found - 1; from >= 0; --from) {
    Link<M> here;
#pragma unroll
    for (int m = 0; m < M; ++m) here.part[m] = warp_shuffle(prepared.part[m], from);
    value = join(value, here);
  }
  return value;
}

}  // namespace megalodon::cuda
