// Walks tokens whose channels fall into groups of equal size, vector by vector, and sums over groups.
//
// Rows hold all groups of a token and are followed by at least one spare vector: where a group does not end
// with a vector, its last vector reaches into the next group or the spare lanes. Walking upwards, what it
// writes there is overwritten by its owner, and sums leave those lanes out.
#pragma once

#include "cpu/kernels/parallel.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// `count` groups of `size` channels each.
struct Groups {
  std::int64_t count;
  std::int64_t size;

  std::int64_t width() const { return count * size; }
  // Whether no vector of a row reaches beyond what it belongs to.
  bool in_whole_vectors(int lanes) const { return (size == 1 ? count : size) % lanes == 0; }
};

// Elements of a row of `width` channels, spare lanes included; a multiple of a vector.
template <class A>
inline std::int64_t row_pitch(std::int64_t width) {
  return (width / kLanes<A> + 2) * kLanes<A>;
}

// What a kernel knows of the group size when it is compiled: that it is so many whole vectors, or one of
// these.
inline constexpr int kOneChannel = 0;
inline constexpr int kAnySize = -1;

// f(c), c being an integral_constant of what is known of the group size. 32 and 64 channels, those of the
// released models, are 2 or 4 vectors of 8 or 16 floats.
template <class A, class F>
inline void with_group_vectors(std::int64_t size, const F& f) {
  if (size == 1) return f(std::integral_constant<int, kOneChannel>{});
  if (size == 2 * kLanes<A>) return f(std::integral_constant<int, 2>{});
  if (size == 4 * kLanes<A>) return f(std::integral_constant<int, 4>{});
  return f(std::integral_constant<int, kAnySize>{});
}

// The values of one group, or of as many groups as a vector has lanes, as the channels of a vector see them.
template <class A>
struct OneGroup {
  std::int64_t group;
  Vec<A> operator()(const A* values) const { return splat(values[group]); }
};

template <class A>
struct GroupPerLane {
  std::int64_t group;
  Vec<A> operator()(const A* values) const { return load(values + group); }
};

// Zeroes the lanes that belong to another group.
template <class A>
struct KeepAll {
  Vec<A> operator()(Vec<A> value) const { return value; }
};

template <class A>
struct KeepFirst {
  VecI mask;

  explicit KeepFirst(std::int64_t count) {
    char bytes[kVectorBytes] = {};
    std::memset(bytes, -1, static_cast<std::size_t>(count) * sizeof(A));
    std::memcpy(&mask, bytes, sizeof(mask));
  }
  Vec<A> operator()(Vec<A> value) const { return bit_cast<Vec<A>>(bit_cast<VecI>(value) & mask); }
};

// f(channel, p) for every vector of one token's row, p being prepare(of) of its group (or groups): of(values)
// gives the channels their group's value. Functions are taken by value: what they hold stays in registers,
// where the memory they write to cannot be taken to change it.
template <int kVectors, class A, class P, class F>
inline void for_groups(const Groups groups, const P prepare, const F f) {
  constexpr int lanes = kLanes<A>;
  if constexpr (kVectors == kOneChannel) {
    for (std::int64_t c = 0; c < groups.count; c += lanes) f(c, prepare(GroupPerLane<A>{c}));
  } else {
    const std::int64_t size = kVectors > 0 ? kVectors * lanes : groups.size;
    std::int64_t channel = 0;
    for (std::int64_t g = 0; g < groups.count; ++g, channel += size) {
      const auto p = prepare(OneGroup<A>{g});
      for (std::int64_t c = 0; c < size; c += lanes) f(channel + c, p);
    }
  }
}

// Within each segment of kSegment lanes, the blocks of kBlock lanes that have an even (kOdd = 0) or odd
// number: first those of a, then those of b.
template <int kBlock, int kSegment, int kOdd, class V, int... i>
inline V every_other_block(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int lanes = sizeof...(i), half = kSegment / 2;
  return __builtin_shufflevector(a, b,
                                 (i / kSegment * kSegment + i % half / kBlock * 2 * kBlock + kOdd * kBlock +
                                  i % kBlock + (i % kSegment < half ? 0 : lanes))...);
}

// Lane i of the result is the sum over the lanes of vector i, for kCount = kLanes<A> vectors; for fewer,
// lanes of a vector are summed as far as there are vectors to fill the result. Pairs are joined within 16
// bytes first, which is what shuffles do fastest.
template <class A, int kCount = kLanes<A>>
inline Vec<A> sum_each(const Vec<A>* vectors) {
  if constexpr (kCount == 1) {
    return *vectors;
  } else {
    using Lanes = std::make_integer_sequence<int, kLanes<A>>;
    constexpr int near = 16 / static_cast<int>(sizeof(A));
    constexpr int block = kCount <= near ? 1 : near, segment = kCount <= near ? near : kLanes<A>;
    const Vec<A> a = sum_each<A, kCount / 2>(vectors), b = sum_each<A, kCount / 2>(vectors + kCount / 2);
    return every_other_block<block, segment, 0>(a, b, Lanes{}) +
           every_other_block<block, segment, 1>(a, b, Lanes{});
  }
}

// Two sums over every group of a run of tokens, (token, group) each, followed by a spare vector. Sums over
// lanes are put off until there are as many as a vector has lanes.
template <int kVectors, class A>
class GroupSums {
 public:
  GroupSums(const Groups& groups, A* first, A* second)
      : groups_(groups), keep_tail_(groups.size % kLanes<A>), first_(first), second_(second) {}

  // The next token. prepare is as for for_groups, and add(channel, p, keep, a, b) adds a vector's share to a
  // and b.
  template <class P, class F>
  void add_token(const P prepare, const F add) {
    constexpr int lanes = kLanes<A>;
    const Groups groups = groups_;
    if constexpr (kVectors == kOneChannel) {
      for (std::int64_t c = 0; c < groups.count; c += lanes) {
        Vec<A> a = {}, b = {};
        add(c, prepare(GroupPerLane<A>{c}), KeepAll<A>{}, a, b);
        store(first_ + c, a);
        store(second_ + c, b);
      }
      first_ += groups.count;
      second_ += groups.count;
    } else {
      const std::int64_t size = kVectors > 0 ? kVectors * lanes : groups.size;
      const std::int64_t whole = size / lanes * lanes;
      std::int64_t channel = 0;
      for (std::int64_t g = 0; g < groups.count; ++g, channel += size) {
        const auto p = prepare(OneGroup<A>{g});
        Vec<A> a = {}, b = {};
        for (std::int64_t c = 0; c < whole; c += lanes) add(channel + c, p, KeepAll<A>{}, a, b);
        if (whole < size) add(channel + whole, p, keep_tail_, a, b);
        a_[filled_] = a;
        b_[filled_] = b;
        if (++filled_ == lanes) finish();
      }
    }
  }

  // To be called after the last token.
  void finish() {
    if (filled_ == 0) return;
    store(first_, sum_each<A>(a_));
    store(second_, sum_each<A>(b_));
    first_ += filled_;
    second_ += filled_;
    filled_ = 0;
  }

 private:
  const Groups groups_;
  const KeepFirst<A> keep_tail_;
  A *first_, *second_;
  Vec<A> a_[kLanes<A>] = {}, b_[kLanes<A>] = {};
  int filled_ = 0;
};

}  // namespace megalodon::cpu::MEGALODON_TARGET
