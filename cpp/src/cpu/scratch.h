// Workspace memory that outlives the call that used it.
#pragma once

#include <cstddef>

namespace megalodon::cpu {

// A block of at least `bytes`, uninitialized and aligned to a cache line; throws std::bad_alloc. Each thread
// keeps the blocks it gave back, up to 128 MiB, for its next calls: a freshly mapped page costs a page fault,
// and where workspace and output are of one size, faults take longer than the kernel.
void* take_scratch(std::size_t bytes);

// `bytes` as it was taken. On the same thread.
void give_scratch(void* block, std::size_t bytes);

}  // namespace megalodon::cpu
