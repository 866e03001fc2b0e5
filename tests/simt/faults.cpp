// Kernels with and without a fault, for test_interpreter.py: `faults NAME` prints what the kernel computes,
// or the error; `faults NAME THREADS SHARED VALUES` launches it otherwise.
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <string>
#include <vector>

#include "common/chain.cuh"
#include "common/reduce.cuh"
#include "common/run.cuh"
#include "common/types.cuh"
#include "common/warp_product.cuh"

namespace megalodon::cuda {
namespace {

constexpr int kThreads = 128;

struct Args {
  Global<const float> x;
  Global<float> y;
  Global<std::int32_t> flags;  // zeros; one is a counter, the others are of blocks
  Chain chain;
};

// y[block] = the sum of the block's x, by halves in shared memory.
template <bool kBarrier>
MEGALODON_KERNEL void sum(Args op) {
  SharedMemory memory;
  const Shared<float> part = memory.take<float>(kThreads);
  part[thread_index()] = op.x[block_x() * kThreads + thread_index()];
  for (int step = kThreads / 2; step > 0; step /= 2) {
    if (kBarrier) block_barrier();
    if (thread_index() < step) part[thread_index()] += part[thread_index() + step];
  }
  if (thread_index() == 0) op.y[block_x()] = part[0];
}

MEGALODON_KERNEL void sum_by_warps(Args op) {
  SharedMemory memory;
  const Shared<float> part = memory.take<float>(kThreads / kWarp);
  const float sum = warp_sum(op.x[block_x() * kThreads + thread_index()]);
  if (lane_index() == 0) part[warp_index()] = sum;
  block_barrier();
  if (thread_index() == 0) op.y[block_x()] = part[0] + part[1] + part[2] + part[3];
}

// A block reads what another block of the same launch wrote.
MEGALODON_KERNEL void blocks_in_order(Args op) {
  if (thread_index() == 0) op.y[block_x()] = block_x() == 0 ? 1 : op.y[block_x() - 1] + 1;
}

// y of block i is 1 + that of block i - 1, which it waits for. Blocks are numbered by tickets, or as they
// lie in the grid.
template <bool kTickets>
MEGALODON_KERNEL void pass_along(Args op) {
  SharedMemory memory;
  const Shared<std::int32_t> ticket = memory.take<std::int32_t>(1);
  if (thread_index() == 0) ticket[0] = take_ticket(op.flags);
  block_barrier();
  const std::int64_t block = kTickets ? ticket[0] : block_x();
  if (thread_index() != 0) return;
  if (block > 0) wait_for(op.flags + block, 1);
  op.y[block] = block > 0 ? op.y[block - 1] + 1 : 1;
  publish(op.flags + (block + 1), 1);
}

// A warp for each link, so that a link's own value is often known before the one upto it. y of a block is
// the value upto its last link, of join(all, own) = (3 all + own) mod 65521 with own = 1 + link.
MEGALODON_KERNEL void links_of_a_chain(Args op) {
  SharedMemory memory;
  const std::int64_t block = block_ticket(op.chain, memory.take<std::int32_t>(1));
  const std::int64_t warps = block_threads() / kWarp, link = block * warps + warp_index();
  const auto join = [](const Link<1>& all, const Link<1>& own) {
    return Link<1>{std::fmod(3 * all.part[0] + own.part[0], 65521.0)};
  };
  const Link<1> own{1.0 + static_cast<double>(link)};
  if (lane_index() == 0 && link > 0) tell(op.chain, link, kOwn, own);
  Link<1> all = own;
  if (link > 0) {
    const auto as_it_is = [](const Link<1>& value, int) { return value; };
    all = join(look_back<1, 1>(op.chain, link, 1, link, as_it_is, join), own);
  }
  if (lane_index() == 0) tell(op.chain, link, kUpto, all);
  if (lane_index() == 0 && warp_index() == warps - 1) op.y[block] = static_cast<float>(all.part[0]);
}

// Half of a warp waits for the other half, and all meet in a shuffle.
MEGALODON_KERNEL void wait_inside_a_block(Args op) {
  if (block_x() != 0) return;
  if (lane_index() < kWarp / 2) wait_for(op.flags, 1);
  if (thread_index() == kThreads - 1) publish(op.flags, 1);
  const float sum = warp_sum(1.0f);
  if (lane_index() == 0) op.y[warp_index()] = sum;
}

MEGALODON_KERNEL void unwritten_shared(Args op) {
  SharedMemory memory;
  const Shared<float> part = memory.take<float>(kThreads);
  if (thread_index() == 0) op.y[block_x()] = part[0];
}

MEGALODON_KERNEL void barrier_of_some(Args) {
  if (thread_index() < kThreads / 2) block_barrier();
}
MEGALODON_KERNEL void barrier_after_an_exit(Args) {
  if (thread_index() == 5) return;
  block_barrier();
}
MEGALODON_KERNEL void warp_barrier_of_some(Args) {
  if (thread_index() % 2 == 0) warp_barrier();
}
MEGALODON_KERNEL void shuffle_of_some(Args op) {
  if (thread_index() % 2 == 0) op.y[0] = warp_shuffle(1.0f, 0);
}
MEGALODON_KERNEL void shuffle_beside_a_barrier(Args op) {
  if (thread_index() % 2 == 0) {
    block_barrier();
  } else {
    op.y[0] = warp_shuffle(1.0f, 0);
  }
}
MEGALODON_KERNEL void shuffle_from_no_lane(Args op) { op.y[0] = warp_shuffle(1.0f, kWarp); }
MEGALODON_KERNEL void global_past_the_end(Args op) { op.y[block_x()] = op.x[kThreads * 4]; }
MEGALODON_KERNEL void global_before_the_start(Args op) { (op.y + 1)[-2] = 0; }
MEGALODON_KERNEL void global_that_is_absent(Args) { Global<float>()[0] = 0; }
MEGALODON_KERNEL void vector_past_the_end(Args op) {
  float x[4];
  load<4>(op.x, kThreads * 4 - 2, x);
}
MEGALODON_KERNEL void vector_misaligned(Args op) {
  float x[4];
  load<4>(op.x, 1, x);
}
MEGALODON_KERNEL void shared_past_the_end(Args) {
  SharedMemory memory;
  memory.take<float>(kThreads)[kThreads] = 0;
}
MEGALODON_KERNEL void more_shared_than_launched(Args) {
  SharedMemory memory;
  memory.take<float>(kThreads);
  memory.take<float>(1);
}

// y (16, 16) = a b of one warp: a is the first and b the second 16 x 16 elements of x, made small. A tile
// lies in shared memory by rows of the product, or kDeep, by depth.
template <class T, bool kDeep>
MEGALODON_KERNEL void product(Args op) {
  constexpr int pitch = tile_pitch(16);
  SharedMemory memory;
  const Shared<T> a = memory.take<T>(16 * pitch), b = memory.take<T>(16 * pitch);
  for (int i = lane_index(); i < 256; i += kWarp) {
    const int row = i / 16, column = i % 16;
    const auto small = [&](int at) { return static_cast<float>(static_cast<int>(op.x[at]) % 11 - 5); };
    write(a[kDeep ? column * pitch + row : row * pitch + column], small(i));
    write(b[kDeep ? row * pitch + column : column * pitch + row], small(256 + i));
  }
  block_barrier();
  std::uint32_t left[4], right[2][2];
  load_a<kDeep>(a, pitch, 0, 0, left);
  load_b<kDeep>(b, pitch, 0, 0, right);
  for (int half = 0; half < 2; ++half) {
    float sum[4] = {};
    multiply_add(T{}, sum, left, right[half]);
    for (int e = 0; e < 4; ++e) op.y[sum_row(e) * 16 + 8 * half + sum_column(e)] = sum[e];
  }
}

MEGALODON_KERNEL void product_of_some(Args) {
  float sum[4] = {};
  const std::uint32_t a[4] = {}, b[2] = {};
  if (thread_index() % 2 == 0) multiply_add(BFloat16{}, sum, a, b);
}
MEGALODON_KERNEL void product_beside_a_load(Args) {
  SharedMemory memory;
  const Shared<BFloat16> tile = memory.take<BFloat16>(8);
  float sum[4] = {};
  std::uint32_t a[4] = {}, b[2] = {};
  if (lane_index() < 8) {
    load_matrices<false>(tile, 0, a);
  } else {
    multiply_add(BFloat16{}, sum, a, b);
  }
}
MEGALODON_KERNEL void matrices_misaligned(Args) {
  SharedMemory memory;
  std::uint32_t a[4];
  load_matrices<false>(memory.take<BFloat16>(16), 4, a);
}

// The block copies its x, a lane four at a time, and y[block] is their sum.
template <bool kWait, bool kBarrier>
MEGALODON_KERNEL void copied_sum(Args op) {
  SharedMemory memory;
  const Shared<float> part = memory.take<float>(kThreads);
  if (warp_index() == 0) {
    copy_async(part, 4 * lane_index(), op.x, block_x() * kThreads + 4 * lane_index(), true);
    copies_commit();
    if (kWait) copies_wait<0>();
  }
  if (kBarrier) block_barrier();
  if (thread_index() != 0) return;
  float sum = 0;
  for (int i = 0; i < kThreads; ++i) sum += part[i];
  op.y[block_x()] = sum;
}

// Of two groups, the second zeros: the first, the second too early, the second.
MEGALODON_KERNEL void copied_groups(Args op) {
  SharedMemory memory;
  const Shared<float> part = memory.take<float>(8);
  if (thread_index() != 0) return;
  copy_async(part, 0, op.x, 4, true);
  copies_commit();
  copy_async(part, 4, op.x, 1 << 20, false);
  copies_commit();
  copies_wait<1>();
  op.y[0] = part[0];
  op.y[1] = part[4];
  copies_wait<0>();
  op.y[2] = part[4];
  op.y[3] = part[3];
}

MEGALODON_KERNEL void copy_past_the_end(Args op) {
  SharedMemory memory;
  copy_async(memory.take<float>(4), 0, op.x, kThreads * 4 - 2, true);
}
MEGALODON_KERNEL void copy_misaligned(Args op) {
  SharedMemory memory;
  copy_async(memory.take<float>(4), 0, op.x, 1, true);
}

const std::map<std::string, void (*)(Args)> kKernels = {
    {"sum", sum<true>},
    {"sum_without_barrier", sum<false>},
    {"sum_by_warps", sum_by_warps},
    {"blocks_in_order", blocks_in_order},
    {"pass_along", pass_along<true>},
    {"pass_along_without_tickets", pass_along<false>},
    {"links_of_a_chain", links_of_a_chain},
    {"wait_inside_a_block", wait_inside_a_block},
    {"unwritten_shared", unwritten_shared},
    {"barrier_of_some", barrier_of_some},
    {"barrier_after_an_exit", barrier_after_an_exit},
    {"warp_barrier_of_some", warp_barrier_of_some},
    {"shuffle_of_some", shuffle_of_some},
    {"shuffle_beside_a_barrier", shuffle_beside_a_barrier},
    {"shuffle_from_no_lane", shuffle_from_no_lane},
    {"global_past_the_end", global_past_the_end},
    {"global_before_the_start", global_before_the_start},
    {"global_that_is_absent", global_that_is_absent},
    {"vector_past_the_end", vector_past_the_end},
    {"vector_misaligned", vector_misaligned},
    {"shared_past_the_end", shared_past_the_end},
    {"more_shared_than_launched", more_shared_than_launched},
    {"product_bfloat16", product<BFloat16, false>},
    {"product_bfloat16_deep", product<BFloat16, true>},
    {"product_float16", product<Float16, false>},
    {"product_float16_deep", product<Float16, true>},
    {"product_of_some", product_of_some},
    {"product_beside_a_load", product_beside_a_load},
    {"matrices_misaligned", matrices_misaligned},
    {"copied_sum", copied_sum<true, true>},
    {"copied_sum_without_wait", copied_sum<false, true>},
    {"copied_sum_without_barrier", copied_sum<true, false>},
    {"copied_groups", copied_groups},
    {"copy_past_the_end", copy_past_the_end},
    {"copy_misaligned", copy_misaligned},
};

constexpr int kBlocks = 4, kLinks = kBlocks * 1024 / kWarp;

// `shared` is in floats; `values` of y are printed.
int run(const std::string& name, int threads, int shared, int values) {
  alignas(16) static float x[kBlocks * kThreads], y[256];
  static std::int32_t flags[kBlocks + 1];
  alignas(256) static char workspace[1 << 14];
  for (int i = 0; i < kBlocks * kThreads; ++i) x[i] = static_cast<float>(i);
  Run call(nullptr, {workspace, sizeof(workspace)});
  try {
    call.launch(
        kKernels.at(name), {kBlocks}, threads, shared_size<float>(shared),
        Args{Run::span<const float>(x, 0, kBlocks * kThreads, "x"), Run::span<float>(y, 0, values, "y"),
             Run::span<std::int32_t>(flags, 0, kBlocks + 1, "flags"), make_chain<1>(call, kLinks)});
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  for (int i = 0; i < values; ++i) std::printf("%g ", y[i]);
  return 0;
}

}  // namespace
}  // namespace megalodon::cuda

int main(int argc, char** argv) {
  const auto number = [&](int i, int otherwise) { return argc > i ? std::atoi(argv[i]) : otherwise; };
  return megalodon::cuda::run(argv[1], number(2, megalodon::cuda::kThreads),
                              number(3, megalodon::cuda::kThreads), number(4, 4));
}
