// RMS norm, layer norm, and layer norm of a sum, over the rows of contiguous arrays.
//
// A row is read from memory once, into a buffer of the accumulation type, and written once.
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

// The normalized row is buffer * scale + shift.
template <class A>
struct RowStatistics {
  A scale;
  A shift;
};

// Reads a row (and its residual) into the buffer, and centres it there where the norm does.
//
// The variance is the mean square around the mean, in a second pass over the buffer: the difference of two
// large sums would lose every digit when the mean is large beside the deviation. What rounding of the mean
// leaves, the mean of the centred row, is taken out of both.
template <bool kCenter, class T, class A = Acc<T>>
inline RowStatistics<A> read_row(const Row<const T> x, const Row<const T> residual, std::int64_t dim,
                                 double eps, A* buffer) {
  const A inverse = static_cast<A>(1.0 / static_cast<double>(dim));
  SlotSums<A> sum, squares;
  const auto take = [=, &sum, &squares](std::int64_t c, int slot, Vec<A> value) {
    store(buffer + c, value);
    if constexpr (kCenter) {
      sum.slot[slot] += value;
    } else {
      squares.slot[slot] += value * value;
    }
  };
  if (residual.data == nullptr) {
    for_vectors<A>(dim, [=](auto lanes, std::int64_t c, int slot) {
      x.prefetch_next(c, slot);
      take(c, slot, lanes.read(x.data + c));
    });
  } else {
    for_vectors<A>(dim, [=](auto lanes, std::int64_t c, int slot) {
      x.prefetch_next(c, slot);
      residual.prefetch_next(c, slot);
      take(c, slot, lanes.read(x.data + c) + lanes.read(residual.data + c));
    });
  }
  A remainder = 0;
  if constexpr (kCenter) {
    const A mean = sum.total() * inverse;
    SlotSums<A> deviations;
    for_vectors<A>(dim, [=, &deviations, &squares](auto lanes, std::int64_t c, int slot) {
      const Vec<A> deviation = lanes.keep(load(buffer + c) - mean);
      store(buffer + c, deviation);
      deviations.slot[slot] += deviation;
      squares.slot[slot] += deviation * deviation;
    });
    remainder = deviations.total() * inverse;
  }
  const A mean_square = squares.total() * inverse - remainder * remainder;
  const A scale = 1 / square_root(mean_square + static_cast<A>(eps));
  return {scale, -remainder * scale};
}

template <bool kCenter, class T>
inline void norm_forward_as(const NormForward& op, const RowShape& shape, int threads) {
  using A = Acc<T>;
  const std::int64_t dim = shape.dim;
  const RowAffine<A> affine(op, dim);
  const A *weight = affine.weight(), *bias = affine.bias();
  const int parts = threads_for_elements(threads, shape.rows * dim);
  const Scratch<A> buffers(parts * padded_to_vector<A>(dim));
  for_row_parts(shape.rows, parts, [&](std::int64_t part, std::int64_t begin, std::int64_t end) {
    A* buffer = buffers.data() + part * padded_to_vector<A>(dim);
    for (std::int64_t i = begin; i < end; ++i) {
      const Row<const T> x(op.x, i, end, dim), residual(op.residual, i, end, dim);
      const Row<T> y(op.y, i, end, dim);
      const RowStatistics<A> statistics = read_row<kCenter, T>(x, residual, dim, op.eps, buffer);
      for_vectors<A>(dim, [=](auto lanes, std::int64_t c, int slot) {
        y.prefetch_next(c, slot);
        const Vec<A> normalized = load(buffer + c) * statistics.scale + statistics.shift;
        lanes.write(y.data + c, normalized * lanes.read(weight + c) + lanes.read(bias + c));
      });
    }
  });
}

// With the normalized row n and g = dy weight:  dx = scale (g - mean(g) - n mean(g n)), mean(g) only if
// centred.
template <bool kCenter, class T>
inline void norm_backward_as(const NormBackward& op, const RowShape& shape, int threads) {
  using A = Acc<T>;
  const std::int64_t dim = shape.dim, pitch = padded_to_vector<A>(dim);
  const A inverse = static_cast<A>(1.0 / static_cast<double>(dim));
  const RowAffine<A> affine(op, dim);
  const A* weight = affine.weight();
  const int parts = threads_for_elements(threads, shape.rows * dim);
  const Scratch<A> buffers(parts * 2 * pitch);
  const ColumnSums<A> weight_sums(parts, pitch), bias_sums(parts, pitch);
  for_row_parts(shape.rows, parts, [&](std::int64_t part, std::int64_t begin, std::int64_t end) {
    A* buffer = buffers.data() + part * 2 * pitch;
    A* gradient = buffer + pitch;  // g, rounded once: its mean must cancel it where D is 1
    A* dweight = weight_sums.block(part);
    A* dbias = bias_sums.block(part);
    for (std::int64_t i = begin; i < end; ++i) {
      const Row<const T> x(op.x, i, end, dim), residual(op.residual, i, end, dim), dy(op.dy, i, end, dim);
      const Row<T> dx(op.dx, i, end, dim);
      const RowStatistics<A> statistics = read_row<kCenter, T>(x, residual, dim, op.eps, buffer);
      SlotSums<A> sum, product;
      for_vectors<A>(dim, [=, &sum, &product](auto lanes, std::int64_t c, int slot) {
        dy.prefetch_next(c, slot);
        const Vec<A> n = load(buffer + c) * statistics.scale + statistics.shift;
        const Vec<A> d = lanes.read(dy.data + c);
        const Vec<A> g = d * lanes.read(weight + c);
        store(gradient + c, g);
        store(dweight + c, load(dweight + c) + d * n);
        if constexpr (kCenter) store(dbias + c, load(dbias + c) + d);
        sum.slot[slot] += g;
        product.slot[slot] += g * n;
      });
      const A mean = kCenter ? sum.total() * inverse : A(0);
      const A projection = product.total() * inverse;
      for_vectors<A>(dim, [=](auto lanes, std::int64_t c, int slot) {
        dx.prefetch_next(c, slot);
        const Vec<A> n = load(buffer + c) * statistics.scale + statistics.shift;
        lanes.write(dx.data + c, (load(gradient + c) - (n * projection + mean)) * statistics.scale);
      });
      weight_sums.rows_added(part, 1);
      bias_sums.rows_added(part, 1);
    }
  });
  if (op.dweight.defined()) weight_sums.finish(0, parts, dim, op.dweight.as<A>());
  if (op.dbias.defined()) bias_sums.finish(0, parts, dim, op.dbias.as<A>());
}

inline void norm_forward(const NormForward& op, int threads) {
  record_isa(kIsa);
  with_storage(op.x.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    op.center ? norm_forward_as<true, T>(op, row_shape(op.x), threads)
              : norm_forward_as<false, T>(op, row_shape(op.x), threads);
  });
}

inline void norm_backward(const NormBackward& op, int threads) {
  record_isa(kIsa);
  with_storage(op.x.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    op.center ? norm_backward_as<true, T>(op, row_shape(op.x), threads)
              : norm_backward_as<false, T>(op, row_shape(op.x), threads);
  });
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
