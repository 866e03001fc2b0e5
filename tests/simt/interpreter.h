// A GPU in one host thread: runs the blocks of a launch one after another and the threads of a block as
// fibers, both in an order that is drawn anew each time. A barrier and a shuffle are rendezvous: nobody goes
// on before all have come. So a result that depends on an order no GPU promises changes, and a rendezvous
// that part of the threads miss is an error.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace megalodon::simt {

inline constexpr int kWarp = 32;

struct Grid {
  std::int64_t x = 1, y = 1;
};

// Runs `kernel` once per thread. Throws std::runtime_error for what a GPU would get wrong in silence.
void launch(Grid grid, int threads, std::int64_t shared_bytes, const std::function<void()>& kernel);

// Of the thread that runs.
int thread_index();
int block_threads();
std::int64_t block_x();
std::int64_t block_y();
Grid grid();

void block_barrier();
// The bits that the lane `source` of this warp passes.
std::uint64_t warp_exchange(std::uint64_t bits, int source);
// Part of the block's shared memory, which starts as NaN.
void* shared_memory(std::int64_t offset, std::int64_t bytes);

[[noreturn]] void fail(const std::string& what);
[[noreturn]] void fail_bounds(const char* memory, std::int64_t i, int count, std::int64_t low,
                              std::int64_t high);

}  // namespace megalodon::simt
