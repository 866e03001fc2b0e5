// The gate and the second hop: element by element over contiguous arrays.
#pragma once

#include "cpu/kernels/column_sums.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/vector_math.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// f(lanes, output, i) for every vector of `count` elements, in one contiguous range of whole vectors per
// thread; f writes by way of output. It is taken by value, as for_vectors takes it.
template <class A, class F>
inline void for_elements(std::int64_t count, bool past_cache, int threads, const F f) {
  const std::int64_t vectors = (count + kLanes<A> - 1) / kLanes<A>;
  const int parts = threads_for_elements(threads, count);
  with_output(past_cache, [&](auto output) {
    for_row_parts(vectors, parts, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      const std::int64_t first = begin * kLanes<A>, last = clamp(end * kLanes<A>, 0, count);
      for_vectors<A>(last - first, [=](auto lanes, std::int64_t c, int)
                                       __attribute__((always_inline)) { f(lanes, output, first + c); });
    });
  });
}

inline void silu_mul_forward(const SiluMulForward& op, int threads) {
  record_isa(kIsa);
  with_storage(op.gate.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const T* gate = op.gate.as<const T>();
    const T* value = op.value.as<const T>();
    T* y = op.y.as<T>();
    for_elements<Acc<T>>(op.y.numel(), goes_past_cache(op.y), threads,
                         [=](auto lanes, auto output, std::int64_t i) __attribute__((always_inline)) {
                           const auto g = lanes.read(gate + i);
                           output.write(lanes, y + i, g * sigmoid_for<T>(g) * lanes.read(value + i));
                         });
  });
}

inline void silu(const Silu& op, int threads) {
  record_isa(kIsa);
  with_storage(op.x.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const T* x = op.x.as<const T>();
    T* y = op.y.as<T>();
    for_elements<Acc<T>>(op.y.numel(), goes_past_cache(op.y), threads,
                         [=](auto lanes, auto output, std::int64_t i) __attribute__((always_inline)) {
                           const auto value = lanes.read(x + i);
                           output.write(lanes, y + i, value * sigmoid_for<T>(value));
                         });
  });
}

// With s = sigmoid(gate):  d silu / d gate = s + gate s (1 - s).
inline void silu_mul_backward(const SiluMulBackward& op, int threads) {
  record_isa(kIsa);
  with_storage(op.gate.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const T* gate = op.gate.as<const T>();
    const T* value = op.value.as<const T>();
    const T* dy = op.dy.as<const T>();
    T* dgate = op.dgate.as<T>();
    T* dvalue = op.dvalue.as<T>();
    const bool past_cache = goes_past_cache(op.dgate) && goes_past_cache(op.dvalue);
    for_elements<Acc<T>>(op.dgate.numel(), past_cache, threads,
                         [=](auto lanes, auto output, std::int64_t i) __attribute__((always_inline)) {
                           const auto g = lanes.read(gate + i), d = lanes.read(dy + i);
                           const auto s = sigmoid_for<T>(g);
                           const auto silu = g * s;
                           output.write(lanes, dgate + i, d * lanes.read(value + i) * (s + silu * (1 - s)));
                           output.write(lanes, dvalue + i, d * silu);
                         });
  });
}

inline void two_hop_residual_forward(const TwoHopResidualForward& op, int threads) {
  record_isa(kIsa);
  with_storage(op.branch.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using A = Acc<T>;
    const T* branch = op.branch.as<const T>();
    const T* residual = op.residual.as<const T>();
    T* y = op.y.as<T>();
    if (!op.alpha.defined()) {
      for_elements<Acc<T>>(op.y.numel(), goes_past_cache(op.y), threads,
                           [=](auto lanes, auto output, std::int64_t i) __attribute__((always_inline)) {
                             output.write(lanes, y + i, lanes.read(residual + i) + lanes.read(branch + i));
                           });
      return;
    }
    const A* alpha = op.alpha.as<const A>();
    const RowShape shape = row_shape(op.branch);
    const int parts = threads_for_elements(threads, shape.rows * shape.dim);
    with_output(goes_past_cache(op.y), [&](auto output) {
      for_row_parts(shape.rows, parts, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          for_vectors<A>(shape.dim, [=, first = row * shape.dim](auto lanes, std::int64_t c,
                                                                 int) __attribute__((always_inline)) {
            const std::int64_t i = first + c;
            output.write(lanes, y + i,
                         lanes.read(residual + i) + lanes.read(alpha + c) * lanes.read(branch + i));
          });
        }
      });
    });
  });
}

inline void two_hop_residual_backward(const TwoHopResidualBackward& op, int threads) {
  record_isa(kIsa);
  with_storage(op.branch.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    using A = Acc<T>;
    const T* branch = op.branch.as<const T>();
    const T* dy = op.dy.as<const T>();
    T* dbranch = op.dbranch.as<T>();
    if (!op.alpha.defined()) {
      for_elements<Acc<T>>(op.dbranch.numel(), goes_past_cache(op.dbranch), threads,
                           [=](auto lanes, auto output, std::int64_t i) __attribute__((always_inline)) {
                             output.write(lanes, dbranch + i, lanes.read(dy + i));
                           });
      return;
    }
    const A* alpha = op.alpha.as<const A>();
    const RowShape shape = row_shape(op.branch);
    const int parts = threads_for_elements(threads, shape.rows * shape.dim);
    const ColumnSums<A> sums(parts, padded_to_vector<A>(shape.dim));
    with_output(goes_past_cache(op.dbranch), [&](auto output) {
      for_row_parts(shape.rows, parts, [&](std::int64_t part, std::int64_t begin, std::int64_t end) {
        A* dalpha = sums.block(part);
        for (std::int64_t row = begin; row < end; ++row) {
          for_vectors<A>(shape.dim, [=, first = row * shape.dim](auto lanes, std::int64_t c, int)
                                        __attribute__((always_inline)) {
                                          const std::int64_t i = first + c;
                                          const Vec<A> d = lanes.read(dy + i);
                                          output.write(lanes, dbranch + i, lanes.read(alpha + c) * d);
                                          store(dalpha + c, load(dalpha + c) + d * lanes.read(branch + i));
                                        });
          sums.rows_added(part, 1);
        }
      });
    });
    sums.finish(0, parts, shape.dim, op.dalpha.as<A>());
  });
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
