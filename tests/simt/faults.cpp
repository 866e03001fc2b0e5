// Kernels with and without a fault, for test_interpreter.py: `faults NAME` prints what the kernel computes,
// or the error.
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <string>
#include <vector>

#include "common/reduce.cuh"
#include "common/run.cuh"
#include "common/types.cuh"

namespace megalodon::cuda {
namespace {

constexpr int kThreads = 128;

struct Args {
  Global<const float> x;
  Global<float> y;
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

const std::map<std::string, void (*)(Args)> kKernels = {
    {"sum", sum<true>},
    {"sum_without_barrier", sum<false>},
    {"sum_by_warps", sum_by_warps},
    {"blocks_in_order", blocks_in_order},
    {"unwritten_shared", unwritten_shared},
    {"barrier_of_some", barrier_of_some},
    {"barrier_after_an_exit", barrier_after_an_exit},
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
};

int run(const std::string& name, int threads) {
  alignas(16) static float x[4 * kThreads], y[4];
  for (int i = 0; i < 4 * kThreads; ++i) x[i] = static_cast<float>(i);
  Run call(nullptr, {});
  try {
    call.launch(kKernels.at(name), {4}, threads, shared_size<float>(kThreads),
                Args{Run::span<const float>(x, 0, 4 * kThreads, "x"), Run::span<float>(y, 0, 4, "y")});
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  std::printf("%g %g %g %g\n", y[0], y[1], y[2], y[3]);
  return 0;
}

}  // namespace
}  // namespace megalodon::cuda

int main(int argc, char** argv) {
  return megalodon::cuda::run(argv[1], argc > 2 ? std::atoi(argv[2]) : megalodon::cuda::kThreads);
}
