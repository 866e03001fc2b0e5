// Threads and scratch memory of a kernel.
#pragma once

#include <cstdint>
#include <type_traits>

#include <omp.h>

#include "cpu/flag.h"
#include "cpu/kernels/simd.h"
#include "cpu/scratch.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// The index of the calling thread in its team, for scratch memory: below `threads` of the outermost
// parallel_for, and 0 outside of one.
inline thread_local int team_index = 0;
inline int thread_index() { return team_index; }

// f(i) for i in [0, count), each exactly once, on up to `threads` threads. Work is handed out dynamically, so
// f must not let its result depend on which thread runs it: that is what keeps kernels deterministic.
// f must not throw. A call inside a parallel region runs on the calling thread alone.
template <class F>
inline void parallel_for(std::int64_t count, int threads, const F& f) {
  if (threads <= 1 || count <= 1 || omp_in_parallel()) {
    for (std::int64_t i = 0; i < count; ++i) f(i);
    finish_streams();
    return;
  }
  const int team = count < threads ? static_cast<int>(count) : threads;
#pragma omp parallel num_threads(team)
  {
    team_index = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1) nowait
    for (std::int64_t i = 0; i < count; ++i) f(i);
    finish_streams();
    team_index = 0;
  }
}

// As many of `threads` as have work for longer than it takes to wake them: about 10 us, or 2^16 operations
// each.
inline int useful_threads(int threads, std::int64_t operations) {
  const std::int64_t useful = operations >> 16;
  if (useful < threads) return useful < 1 ? 1 : static_cast<int>(useful);
  return threads;
}

// f(part, i) for i in [0, count), i being of part i % parts, for work where f(i) waits for what an earlier
// f(j) hands it: a thread takes whole parts, and what it has in ascending order, so that whoever is waited
// for is at work whatever number of threads there is. f must not throw.
template <class F>
inline void parallel_in_order(std::int64_t count, int parts, const F& f) {
  if (parts <= 1 || count <= 1 || omp_in_parallel()) {
    for (std::int64_t i = 0; i < count; ++i) f(i % parts, i);
    finish_streams();
    return;
  }
#pragma omp parallel num_threads(parts)
  {
    const int team = omp_get_num_threads();
    team_index = omp_get_thread_num();
    for (std::int64_t i = 0; i < count; ++i) {
      if (i % parts % team == team_index) f(i % parts, i);
    }
    finish_streams();
    team_index = 0;
  }
}

// f(begin, end) over [0, count) in `parts` contiguous ranges of near-equal size.
template <class F>
inline void parallel_ranges(std::int64_t count, int parts, const F& f) {
  parallel_for(parts, parts, [&](std::int64_t i) {
    const std::int64_t begin = count * i / parts, end = count * (i + 1) / parts;
    if (begin < end) f(begin, end);
  });
}

// Uninitialized memory of trivial elements, aligned to a cache line. Allocate outside parallel regions.
template <class T>
class Scratch {
 public:
  explicit Scratch(std::int64_t count)
      : data_(static_cast<T*>(take_scratch(bytes_of(count)))), size_(count) {}
  ~Scratch() { give_scratch(data_, bytes_of(size_)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* data() const { return data_; }
  std::int64_t size() const { return size_; }
  void zero() const { std::memset(data_, 0, bytes_of(size_)); }

 private:
  static std::size_t bytes_of(std::int64_t count) { return static_cast<std::size_t>(count) * sizeof(T); }

  T* data_;
  std::int64_t size_;
};

// Which of `count` items are ready, for items that one thread hands to another.
class Relay {
 public:
  explicit Relay(std::int64_t count) : ready_(count) { ready_.zero(); }

  void hand_over(std::int64_t i) const { raise(ready_.data()[i]); }
  void wait_for(std::int64_t i) const { cpu::wait_for(ready_.data()[i]); }

 private:
  Scratch<int> ready_;
};

}  // namespace megalodon::cpu::MEGALODON_TARGET
