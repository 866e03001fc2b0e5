// Softmax over keys of scores that are kept with queries along the lanes.
#pragma once

#include "cpu/kernels/dropout.h"
#include "cpu/kernels/vector_math.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// data[key][i] belongs to position query + i of the chunk, i < rows <= kPanel. All ranges are of keys.
template <class A>
struct ScorePanel {
  A* data;
  std::int64_t query;
  std::int64_t rows;

  static constexpr A kLowest = -static_cast<A>(__builtin_inff());

  // Sets what a query may not see because its key comes later.
  void fill_later_keys(std::int64_t first, std::int64_t last, A value) const {
    for (std::int64_t key = larger(first, query + 1); key < last; ++key) {
      for (std::int64_t i = 0; i < smaller(key - query, kPanel<A>); ++i) data[key * kPanel<A> + i] = value;
    }
  }

  // Scores of later and of dropped keys become -inf.
  void mask(std::int64_t first, std::int64_t last, const Dropout& dropout) const {
    if (dropout.active()) {
      for (std::int64_t key = first; key < last; ++key) {
        dropout.drop(data + key * kPanel<A>, key, query, round_up(rows, kLanes<A>));
      }
    }
    fill_later_keys(first, last, kLowest);
  }

  void maxima(std::int64_t first, std::int64_t last, A* highest) const {
    with_vectors<A>(rows, [&](auto vectors) {
      Vec<A> best[vectors];
      for (int j = 0; j < vectors; ++j) best[j] = splat(kLowest);
      for (std::int64_t key = first; key < last; ++key) {
        for (int j = 0; j < vectors; ++j) best[j] = max(best[j], load(at(key, j)));
      }
      for (int j = 0; j < vectors; ++j) store(highest + j * kLanes<A>, best[j]);
    });
  }

  // weights <- exp(scores - shift) as a right operand whose depth is the keys, and their sums. Weights may
  // lie where the scores do; `first` is a multiple of kGroup.
  template <class P>
  void exponentiate(std::int64_t first, std::int64_t last, const A* shift, A* sums, P* weights) const {
    with_vectors<A>(rows, [&](auto vectors) {
      Vec<A> sum[vectors] = {};
      for (std::int64_t key = first; key < last; key += kGroup<P>) {
        for (int j = 0; j < vectors; ++j) {
          Vec<A> group[kGroup<P>] = {};
          for (int i = 0; i < smaller(kGroup<P>, last - key); ++i) {
            group[i] = exp(load(at(key + i, j)) - load(shift + j * kLanes<A>));
            sum[j] += group[i];
          }
          Operand<P>::store_groups(weights + key * kPanel<A> + j * kLanes<A> * kGroup<P>,
                                   Operand<P>::group(group));
        }
      }
      for (int j = 0; j < vectors; ++j) store(sums + j * kLanes<A>, sum[j]);
    });
  }

  A* at(std::int64_t key, std::int64_t vector) const { return data + key * kPanel<A> + vector * kLanes<A>; }
};

// What exp is taken relative to. Without dropout a row of scores that are all -inf gives NaN, as in the
// formula; with it, such a row has no key left.
template <class A>
inline Vec<A> softmax_shift(Vec<A> highest, const Dropout& dropout) {
  if (!dropout.active()) return highest;
  return highest == splat(ScorePanel<A>::kLowest) ? Vec<A>{} : highest;
}

// 1 / sum; 0 for a row that has no key left.
template <class A>
inline Vec<A> softmax_inverse(Vec<A> sum) {
  return sum == Vec<A>{} ? Vec<A>{} : A(1) / sum;
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
