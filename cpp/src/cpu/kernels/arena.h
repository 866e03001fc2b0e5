// One block of scratch memory cut into arrays.
#pragma once

#include "cpu/kernels/parallel.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// Hands out cache-aligned arrays of A one after another. Without a base it only counts, so that the same code
// that lays a workspace out also measures it.
template <class A>
class Arena {
 public:
  explicit Arena(A* base = nullptr) : base_(base) {}

  A* take(std::int64_t count) { return take_as<A>(count); }

  // An array of P, in which values of A may be stored too.
  template <class P>
  P* take_as(std::int64_t count) {
    A* array = base_ == nullptr ? nullptr : base_ + used_;
    constexpr std::int64_t item = sizeof(P), unit = sizeof(A);  // signed, as count is
    const std::int64_t size = (count * item + unit - 1) / unit;
    used_ += (size + 15) / 16 * 16;
    return reinterpret_cast<P*>(array);
  }
  std::int64_t used() const { return used_; }

 private:
  A* base_;
  std::int64_t used_ = 0;
};

// `count` workspaces of type Space, each laid out by Space(Arena<A>&, args...), in one allocation.
template <class Space, class A>
class Workspaces {
 public:
  template <class... Args>
  explicit Workspaces(std::int64_t count, const Args&... args)
      : each_(measure(args...)), memory_(count * each_) {}

  template <class... Args>
  Space at(std::int64_t index, const Args&... args) const {
    Arena<A> arena(memory_.data() + index * each_);
    return Space(arena, args...);
  }

 private:
  template <class... Args>
  static std::int64_t measure(const Args&... args) {
    Arena<A> arena;
    Space space(arena, args...);
    return arena.used();
  }

  std::int64_t each_;
  Scratch<A> memory_;
};

}  // namespace megalodon::cpu::MEGALODON_TARGET
