#include "cpu/flag.h"

#include <atomic>

namespace megalodon::cpu {
namespace {

constexpr int kLooks = 1 << 14;

}  // namespace

// The standard library wakes nobody where it counts no sleepers. Without the fence it may read that count
// before others see the flag, while one who has not seen it goes to sleep: for ever.
void raise(int& flag) {
  const std::atomic_ref<int> shared(flag);
  shared.store(1, std::memory_order_release);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  shared.notify_all();
}

void wait_for(int& flag) {
  const std::atomic_ref<int> shared(flag);
  for (int look = 0; look < kLooks; ++look) {
    if (shared.load(std::memory_order_acquire) != 0) return;
  }
  shared.wait(0, std::memory_order_acquire);
}

}  // namespace megalodon::cpu
