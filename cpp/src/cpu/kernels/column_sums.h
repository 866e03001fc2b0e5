// Sums over rows or time, one per column: how parameter gradients are accumulated.
#pragma once

#include "cpu/kernels/parallel.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// Each part of the work adds some rows in A, then flushes them into double. finish() adds the parts in order,
// so a result depends on how the work was split and not on which thread did what.
template <class A>
class ColumnSums {
 public:
  ColumnSums(std::int64_t parts, std::int64_t width)
      : width_(width + kGap),
        pending_(parts * kPendingPitch),
        blocks_(parts * width_),
        totals_(parts * width_) {
    pending_.zero();
    blocks_.zero();
    totals_.zero();
  }

  // Where a part adds its rows, one element per column.
  A* block(std::int64_t part) const { return blocks_.data() + part * width_; }

  // To be called after adding rows, every few of them.
  void rows_added(std::int64_t part, std::int64_t rows) const {
    std::int64_t& pending = pending_.data()[part * kPendingPitch];
    pending += rows;
    if (pending < kRowsPerFlush) return;
    A* block = this->block(part);
    double* total = totals_.data() + part * width_;
    for (std::int64_t c = 0; c < width_; ++c) {
      total[c] += static_cast<double>(block[c]);
      block[c] = 0;
    }
    pending = 0;
  }

  // sums[c] over parts [first, last), for the first `width` columns.
  void finish(std::int64_t first, std::int64_t last, std::int64_t width, A* sums) const {
    for (std::int64_t c = 0; c < width; ++c) {
      double sum = 0;
      for (std::int64_t part = first; part < last; ++part) {
        sum += totals_.data()[part * width_ + c] + static_cast<double>(block(part)[c]);
      }
      sums[c] = static_cast<A>(sum);
    }
  }

 private:
  static constexpr std::int64_t kRowsPerFlush = 64;
  static constexpr std::int64_t kPendingPitch = 8;  // a cache line for each part

  static constexpr std::int64_t kGap = 9 * 64 / sizeof(A);

  std::int64_t width_;
  Scratch<std::int64_t> pending_;
  Scratch<A> blocks_;
  Scratch<double> totals_;
};

}  // namespace megalodon::cpu::MEGALODON_TARGET
