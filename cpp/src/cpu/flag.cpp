#include "cpu/flag.h"

#include <atomic>

namespace megalodon::cpu {
namespace {

constexpr int kLooks = 1 << 14;

}  // namespace

void raise(int& flag) {
  const std::atomic_ref<int> shared(flag);
  shared.store(1, std::memory_order_release);
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
