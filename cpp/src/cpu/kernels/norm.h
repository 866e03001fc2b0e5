// RMS norm, layer norm, and layer norm of a sum, over the rows of contiguous arrays.
//
// A row is read from memory once, more often from cache, and written once.
#pragma once

#include "cpu/kernels/column_sums.h"
#include "cpu/kernels/rows.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// weight and bias, or ones and zeros in their place.
template <class A>
class RowAffine {
 public:
  RowAffine(const Norm& op, std::int64_t dim) : identity_(2 * dim) {
    for (std::int64_t c = 0; c < dim; ++c) {
      identity_.data()[c] = 1;
      identity_.data()[dim + c] = 0;
    }
    weight_ = op.weight.defined() ? op.weight.as<const A>() : identity_.data();
    bias_ = op.bias.defined() ? op.bias.as<const A>() : identity_.data() + dim;
  }

  const A* weight() const { return weight_; }
  const A* bias() const { return bias_; }

 private:
  Scratch<A> identity_;
  const A* weight_;
  const A* bias_;
};

// f(r) for every r below kCount, as an integral_constant: arrays indexed by it stay in registers.
template <class F, int... r>
__attribute__((always_inline)) inline void unroll_as(const F& f, std::integer_sequence<int, r...>) {
  (f(std::integral_constant<int, r>{}), ...);
}

template <int kCount, class F>
__attribute__((always_inline)) inline void unroll(const F& f) {
  unroll_as(f, std::make_integer_sequence<int, kCount>{});
}

inline constexpr int kMostRows = 2;  // that a kernel has in hand at a time

// What is normalized: rows, or their sums with the rows of the residual. kRows of them at a time, so that one
// row's sums over lanes overlap with another's, and sums over rows are stored less often.
template <class T, bool kResidual, int kRows>
struct NormInput {
  using A = Acc<T>;
  // Whether the first pass leaves what it read in a scratch row for the others: sums are added once, and
  // converted once.
  static constexpr bool kKeeps = kResidual || sizeof(T) < sizeof(A);
  Row<const T> x[kRows], residual[kRows];
  A* kept[kRows];

  NormInput(const Norm& op, A* scratch, std::int64_t row, std::int64_t end, std::int64_t dim) {
    for (int r = 0; r < kRows; ++r) {
      x[r] = {op.x, row + r, end, dim, kRows};
      if (kResidual) residual[r] = {op.residual, row + r, end, dim, kRows};
      kept[r] = scratch + r * padded_to_vector<A>(dim);
    }
  }

  // To be called for every vector of row r before others read it `again`.
  template <class Lanes>
  __attribute__((always_inline)) Vec<A> read_first(const Lanes lanes, int r, std::int64_t c) const {
    Vec<A> value = lanes.read(x[r].data + c);
    if constexpr (kResidual) value += lanes.read(residual[r].data + c);
    if constexpr (kKeeps) lanes.write(kept[r] + c, value);
    return value;
  }
  // To be called for every vector of row r in a later pass, which finds the row in cache: the first one is
  // kept waiting by memory already.
  __attribute__((always_inline)) void prefetch_next(int r, std::int64_t c, int slot) const {
    x[r].prefetch_next(c, slot);
    if constexpr (kResidual) residual[r].prefetch_next(c, slot);
  }
  auto again(int r) const {
    if constexpr (kKeeps)
      return static_cast<const A*>(kept[r]);
    else
      return x[r].data;
  }
};

// Where every part of the work keeps its rows.
template <class T, bool kResidual>
class KeptRows {
 public:
  using A = Acc<T>;
  KeptRows(std::int64_t parts, std::int64_t dim)
      : size_(NormInput<T, kResidual, 1>::kKeeps ? kMostRows * padded_to_vector<A>(dim) : 0),
        rows_(parts * size_) {}

  A* of(std::int64_t part) const { return rows_.data() + part * size_; }

 private:
  std::int64_t size_;
  Scratch<A> rows_;
};

// The normalized row is (input - mean) * scale + shift, without mean and shift where the norm does not
// centre.
template <bool kCenter, class A>
struct RowStatistics {
  A mean = 0, scale = 0, shift = 0;

  Vec<A> normalize(Vec<A> value) const {
    if constexpr (kCenter) return (value - mean) * scale + shift;
    return value * scale;
  }
};

template <bool kCenter, class A, int kRows>
struct RowsStatistics {
  RowStatistics<kCenter, A> row[kRows];
};

// The variance is the mean square around the mean, in a second pass over the row: the difference of two large
// sums would lose every digit when the mean is large beside the deviation. What rounding of the mean leaves,
// the mean of the centred row, is taken out of both. The second pass prefetches the next rows if it is to.
template <bool kCenter, bool kPrefetches, class T, bool kResidual, int kRows, class A = Acc<T>>
__attribute__((always_inline)) inline RowsStatistics<kCenter, A, kRows> measure_rows(
    const NormInput<T, kResidual, kRows> input, std::int64_t dim, double eps) {
  const A inverse = static_cast<A>(1.0 / static_cast<double>(dim));
  RowsStatistics<kCenter, A, kRows> statistics;
  SlotSums<A> sum[kRows], squares[kRows];
  A mean[kRows] = {};
  for_vectors<A>(dim,
                 [=, &sum, &squares](auto lanes, std::int64_t c, int slot) __attribute__((always_inline)) {
                   unroll<kRows>([&](auto r) __attribute__((always_inline)) {
                     const Vec<A> value = input.read_first(lanes, r, c);
                     if constexpr (kCenter) {
                       sum[r].slot[slot] += value;
                     } else {
                       squares[r].slot[slot] += value * value;
                     }
                   });
                 });
  if constexpr (kCenter) {
    unroll<kRows>([&](auto r) __attribute__((always_inline)) {
      mean[r] = sum[r].total() * inverse;
      sum[r] = {};
    });
    for_vectors<A>(dim,
                   [=, &sum, &squares](auto lanes, std::int64_t c, int slot) __attribute__((always_inline)) {
                     unroll<kRows>([&](auto r) __attribute__((always_inline)) {
                       if constexpr (kPrefetches) input.prefetch_next(r, c, slot);
                       const Vec<A> deviation = lanes.keep(lanes.read(input.again(r) + c) - mean[r]);
                       sum[r].slot[slot] += deviation;
                       squares[r].slot[slot] += deviation * deviation;
                     });
                   });
  }
  unroll<kRows>([&](auto r) __attribute__((always_inline)) {
    const A remainder = kCenter ? sum[r].total() * inverse : A(0);
    const A mean_square = squares[r].total() * inverse - remainder * remainder;
    const A scale = 1 / square_root(mean_square + static_cast<A>(eps));
    statistics.row[r] = {mean[r], scale, -remainder * scale};
  });
  return statistics;
}

// f(row, number of rows as an integral_constant) for the rows [begin, end), two at a time.
template <class F>
inline void for_row_pairs(std::int64_t begin, std::int64_t end, const F& f) {
  std::int64_t row = begin;
  for (; row + kMostRows <= end; row += kMostRows) f(row, std::integral_constant<int, kMostRows>{});
  if (row < end) f(row, std::integral_constant<int, 1>{});
}

template <class T, bool kCenter, bool kResidual>
inline void norm_forward_as(const NormForward& op, const RowShape& shape, int threads) {
  using A = Acc<T>;
  const std::int64_t dim = shape.dim;
  const RowAffine<A> affine(op, dim);
  const A *weight = affine.weight(), *bias = affine.bias();
  const int parts = threads_for_elements(threads, shape.rows * dim);
  const KeptRows<T, kResidual> kept(parts, dim);
  const bool past_cache = goes_past_cache(op.y);
  for_row_parts(shape.rows, parts, [&](std::int64_t part, std::int64_t begin, std::int64_t end) {
    for_row_pairs(begin, end, [&](std::int64_t row, auto count) {
      constexpr int rows = decltype(count)::value;
      const NormInput<T, kResidual, rows> input(op, kept.of(part), row, end, dim);
      const auto statistics = measure_rows<kCenter, true>(input, dim, op.eps);
      unroll<rows>([&](auto r) __attribute__((always_inline)) {
        const Row<T> y(op.y, row + r, end, dim, rows);
        const Row<const T> x = input.x[r];
        const auto* in = input.again(r);
        const auto row_statistics = statistics.row[r];
        with_output(past_cache, [=](auto output) __attribute__((always_inline)) {
          for_vectors<A>(dim, [=](auto lanes, std::int64_t c, int slot) __attribute__((always_inline)) {
            if constexpr (!kCenter) x.prefetch_next(c, slot);
            output.prefetch_next(y, c, slot);
            const Vec<A> n = row_statistics.normalize(lanes.read(in + c));
            output.write(lanes, y.data + c, n * lanes.read(weight + c) + lanes.read(bias + c));
          });
        });
      });
    });
  });
}

// With the normalized row n and g = dy weight:  dx = scale (g - mean(g) - n mean(g n)), mean(g) only if
// centred. The parameters' gradients are added to dweight and dbias.
template <class T, bool kCenter, bool kResidual, int kRows, class A = Acc<T>>
inline void differentiate_rows(const NormBackward& op, A* kept, bool past_cache, std::int64_t row,
                               std::int64_t end, std::int64_t dim, const A* weight, A* dweight, A* dbias) {
  const A inverse = static_cast<A>(1.0 / static_cast<double>(dim));
  const NormInput<T, kResidual, kRows> input(op, kept, row, end, dim);
  Row<const T> dy[kRows];
  for (int r = 0; r < kRows; ++r) dy[r] = {op.dy, row + r, end, dim, kRows};
  const auto statistics = measure_rows<kCenter, false>(input, dim, op.eps);
  SlotSums<A> sum[kRows], product[kRows];
  for_vectors<A>(dim,
                 [=, &sum, &product](auto lanes, std::int64_t c, int slot) __attribute__((always_inline)) {
                   Vec<A> weight_sum = load(dweight + c), bias_sum = load(dbias + c);
                   const Vec<A> w = lanes.read(weight + c);
                   unroll<kRows>([&](auto r) __attribute__((always_inline)) {
                     input.prefetch_next(r, c, slot);
                     const Vec<A> n = lanes.keep(statistics.row[r].normalize(lanes.read(input.again(r) + c)));
                     const Vec<A> d = lanes.read(dy[r].data + c);
                     const Vec<A> g = d * w;
                     weight_sum += d * n;
                     bias_sum += d;
                     sum[r].slot[slot] += g;
                     product[r].slot[slot] += g * n;
                   });
                   store(dweight + c, weight_sum);
                   if constexpr (kCenter) store(dbias + c, bias_sum);
                 });
  unroll<kRows>([&](auto r) __attribute__((always_inline)) {
    const A mean = kCenter ? sum[r].total() * inverse : A(0);
    const A projection = product[r].total() * inverse;
    // A row of one element is its own mean, which rounding must not bring to light.
    const A scale = kCenter && dim == 1 ? A(0) : statistics.row[r].scale;
    const Row<T> dx(op.dx, row + r, end, dim, kRows);
    const auto* in = input.again(r);
    const auto row_statistics = statistics.row[r];
    const Row<const T> dy_row = dy[r];
    with_output(past_cache, [=](auto output) __attribute__((always_inline)) {
      for_vectors<A>(dim, [=](auto lanes, std::int64_t c, int slot) __attribute__((always_inline)) {
        dy_row.prefetch_next(c, slot);
        output.prefetch_next(dx, c, slot);
        const Vec<A> n = row_statistics.normalize(lanes.read(in + c));
        const Vec<A> g = lanes.read(dy_row.data + c) * lanes.read(weight + c);
        output.write(lanes, dx.data + c, (g - (n * projection + mean)) * scale);
      });
    });
  });
}

template <class T, bool kCenter, bool kResidual>
inline void norm_backward_as(const NormBackward& op, const RowShape& shape, int threads) {
  using A = Acc<T>;
  const std::int64_t dim = shape.dim, pitch = padded_to_vector<A>(dim);
  const RowAffine<A> affine(op, dim);
  const int parts = threads_for_elements(threads, shape.rows * dim);
  const ColumnSums<A> weight_sums(parts, pitch), bias_sums(parts, pitch);
  const KeptRows<T, kResidual> kept(parts, dim);
  const bool past_cache = goes_past_cache(op.dx);
  for_row_parts(shape.rows, parts, [&](std::int64_t part, std::int64_t begin, std::int64_t end) {
    A *dweight = weight_sums.block(part), *dbias = bias_sums.block(part);
    for_row_pairs(begin, end, [&](std::int64_t row, auto count) {
      constexpr int rows = decltype(count)::value;
      differentiate_rows<T, kCenter, kResidual, rows>(op, kept.of(part), past_cache, row, end, dim,
                                                      affine.weight(), dweight, dbias);
      weight_sums.rows_added(part, rows);
      bias_sums.rows_added(part, rows);
    });
  });
  if (op.dweight.defined()) weight_sums.finish(0, parts, dim, op.dweight.as<A>());
  if (op.dbias.defined()) bias_sums.finish(0, parts, dim, op.dbias.as<A>());
}

// f(null pointer of the storage type, whether the norm centres, whether there is a residual), the latter two
// as what is compiled takes them. Only a centring norm has a residual.
template <class F>
inline void with_norm(const Norm& op, const F& f) {
  record_isa(kIsa);
  with_storage(op.x.dtype, [&](auto* tag) {
    if (!op.center) return f(tag, std::false_type{}, std::false_type{});
    if (!op.residual.defined()) return f(tag, std::true_type{}, std::false_type{});
    return f(tag, std::true_type{}, std::true_type{});
  });
}

inline void norm_forward(const NormForward& op, int threads) {
  with_norm(op, [&](auto* tag, auto center, auto residual) {
    norm_forward_as<std::remove_pointer_t<decltype(tag)>, center.value, residual.value>(op, row_shape(op.x),
                                                                                        threads);
  });
}

inline void norm_backward(const NormBackward& op, int threads) {
  with_norm(op, [&](auto* tag, auto center, auto residual) {
    norm_backward_as<std::remove_pointer_t<decltype(tag)>, center.value, residual.value>(op, row_shape(op.x),
                                                                                         threads);
  });
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
