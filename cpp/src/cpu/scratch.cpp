#include "cpu/scratch.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <iterator>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(block, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(block, bytes)
#endif

namespace megalodon::cpu {
namespace {

constexpr std::size_t kLeastKept = std::size_t{1} << 14;  // smaller blocks are malloc's own strength
constexpr std::size_t kMostKept = std::size_t{1} << 27;   // together

class Kept {
 public:
  ~Kept() {
    for (const Block& block : blocks_) std::free(block.data);
  }

  // A block of exactly this size; null if there is none.
  void* take(std::size_t bytes) {
    const auto found = std::find_if(blocks_.rbegin(), blocks_.rend(),
                                    [&](const Block& block) { return block.bytes == bytes; });
    if (found == blocks_.rend()) return nullptr;
    void* data = found->data;
    total_ -= bytes;
    blocks_.erase(std::prev(found.base()));
    return data;
  }

  // Lets the oldest blocks go where there are too many.
  void give(void* data, std::size_t bytes) {
    blocks_.push_back({data, bytes});
    total_ += bytes;
    while (total_ > kMostKept) {
      std::free(blocks_.front().data);
      total_ -= blocks_.front().bytes;
      blocks_.erase(blocks_.begin());
    }
  }

 private:
  struct Block {
    void* data;
    std::size_t bytes;
  };

  std::vector<Block> blocks_;
  std::size_t total_ = 0;
};

Kept& kept() {
  thread_local Kept blocks;
  return blocks;
}

// Rounds up to four sizes per power of two, so that calls of similar shapes share blocks: 17 KiB to 20,
// 21 KiB to 24. What is never touched takes no memory.
std::size_t rounded(std::size_t bytes) {
  const std::size_t step = std::max<std::size_t>(64, std::bit_floor(bytes) / 4);
  return std::max<std::size_t>(64, (bytes + step - 1) / step * step);
}

}  // namespace

void* take_scratch(std::size_t requested) {
  const std::size_t bytes = rounded(requested);
  void* block = bytes < kLeastKept ? nullptr : kept().take(bytes);
  if (block == nullptr) block = std::aligned_alloc(64, bytes);
  if (block == nullptr) throw std::bad_alloc();
  // The sanitizer is told where a block ends for its user, and that nobody may use one that was given back.
  ASAN_POISON_MEMORY_REGION(block, bytes);
  ASAN_UNPOISON_MEMORY_REGION(block, requested);
  return block;
}

void give_scratch(void* block, std::size_t requested) {
  const std::size_t bytes = rounded(requested);
  ASAN_POISON_MEMORY_REGION(block, bytes);
  if (bytes < kLeastKept) {
    std::free(block);
  } else {
    kept().give(block, bytes);
  }
}

}  // namespace megalodon::cpu
