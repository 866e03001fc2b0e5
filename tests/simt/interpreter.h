// A GPU in one host thread: runs the blocks of a launch one after another and the threads of a block as
// fibers, both in an order that is drawn anew each time. A barrier and what a warp does together are
// rendezvous: nobody goes on before all have come. So a result that depends on an order no GPU promises
// changes, and a rendezvous that part of the threads miss is an error. So is a wait for what neither this
// block nor one before it writes.
#pragma once

#include <array>
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

// What a lane brings to what its warp does together.
using Deposit = std::array<std::uint32_t, 12>;
// The deposits of all lanes, once all have come to `what`; they stay until this lane's next meeting.
const Deposit* warp_meet(const char* what, const Deposit& mine);

// Copies of 16 bytes (of zeros where `from` is null) that are under way: what is at `to` is lost at once, and
// what comes in its place is there when this thread has waited for all but the last `pending` groups.
void copy_async(void* to, const void* from);
void copies_commit();
void copies_wait(int pending);

// Returns once `condition` holds, which other threads of the block may bring about.
void wait_until(const std::function<bool()>& condition);
// Part of the block's shared memory, which starts as NaN.
void* shared_memory(std::int64_t offset, std::int64_t bytes);

[[noreturn]] void fail(const std::string& what);
[[noreturn]] void fail_bounds(const char* memory, std::int64_t i, int count, std::int64_t low,
                              std::int64_t high);

}  // namespace megalodon::simt
