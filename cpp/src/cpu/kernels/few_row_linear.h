// A linear map of a few rows: each weight is read from memory once and multiplied with every row.
#pragma once

#include "cpu/kernels/rows.h"
#include "megalodon/ops/few_row_linear.h"

namespace megalodon::cpu::MEGALODON_TARGET {

template <int R, class T>
inline void linear_rows(const FewRowLinear& op, int threads) {
  using A = Acc<T>;
  const std::int64_t dim = op.x.size(-1), outputs = op.weight.size(0), pitch = padded_to_vector<A>(dim);
  const Scratch<A> rows(R * pitch);
  rows.zero();
  for (int r = 0; r < R; ++r) {
    for_vectors<A>(dim, [row = op.x.as<const T>() + r * dim, to = rows.data() + r * pitch](
                            auto lanes, std::int64_t c, int) { store(to + c, lanes.read(row + c)); });
  }
  const int parts = useful_threads(threads, outputs * dim);
  for_row_parts(outputs, parts, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t o = begin; o < end; ++o) {
      SlotSums<A> sums[R];
      for_vectors<A>(dim, [pitch, x = rows.data(), weight = op.weight.as<const T>() + o * dim, &sums](
                              auto lanes, std::int64_t c, int slot) {
        const Vec<A> w = lanes.read(weight + c);
        for (int r = 0; r < R; ++r) sums[r].slot[slot] += w * load(x + r * pitch + c);
      });
      const A shift = op.bias.defined() ? load_one(op.bias.as<const T>() + o) : A(0);
      for (int r = 0; r < R; ++r) store_one(op.y.as<T>() + r * outputs + o, sums[r].total() + shift);
    }
  });
}

inline void few_row_linear(const FewRowLinear& op, int threads) {
  record_isa(kIsa);
  with_storage(op.x.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    switch (op.x.numel() / op.x.size(-1)) {
      case 1:
        return linear_rows<1, T>(op, threads);
      case 2:
        return linear_rows<2, T>(op, threads);
      case 3:
        return linear_rows<3, T>(op, threads);
      case 4:
        return linear_rows<4, T>(op, threads);
      default:
        return;  // validate() admits nothing but 0 rows here
    }
  });
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
