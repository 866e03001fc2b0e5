// Where the keys and values of a chunk lie in the caller's arrays.
#pragma once

#include "cpu/kernels/attention_chunks.h"
#include "cpu/kernels/tile.h"

namespace megalodon::cpu::MEGALODON_TARGET {

// The rows of a state (count, capacity, H, width), addressed as the tokens of a sequence.
inline Sequence state_rows(std::int64_t sequence, const Tensor& state) {
  return {sequence, 0, state.size(1), nullptr};
}

// Keys or values of one head of a chunk: its first positions out of the initial state, the others tokens.
template <class A>
struct PositionRows {
  const Tensor& state;
  const Tensor& tokens;
  const Chunk& chunk;
  std::int64_t head;

  // f(row, i) for i < count, `row` being `width` columns from `column` on of position first + i, with the
  // row's storage type. Rows may lie pages apart, so that each is asked for a few turns ahead.
  template <class F>
  void visit(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t width,
             const F& f) const {
    const std::int64_t old = smaller(count, larger(0, chunk.first_query - first));
    if (old > 0) {
      const A* rows =
          state.as<const A>() + chunk.sequence * state.stride(0) + head * state.stride(2) + column;
      visit_rows(rows, 0, old, width, f, [&](std::int64_t i) { return (first + i) * state.stride(1); });
    }
    if (old == count) return;
    with_storage(tokens.dtype, [&](auto* tag) {
      using T = std::remove_pointer_t<decltype(tag)>;
      if constexpr (std::is_same_v<Acc<T>, A>) {
        const T* rows =
            tokens.as<const T>() + chunk.tokens.row * tokens.stride(0) + head * tokens.stride(2) + column;
        const std::int64_t token = chunk.token(first);
        visit_rows(rows, old, count, width, f,
                   [&](std::int64_t i) { return position_of(chunk.tokens, token + i) * tokens.stride(1); });
      }
    });
  }

  // As left operand of a product, to[i][pitch], or as right one of up to kPanel columns where pitch is
  // kPanel.
  template <class P>
  void load_rows(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t width, P* to,
                 std::int64_t pitch) const {
    visit(first, count, column, width,
          [&](auto* row, std::int64_t i) { load_row(row, width, to + i * pitch); });
  }

  // As right operand of a product: to[panel of columns][kDepth / kGroup][kPanel][kGroup].
  template <std::int64_t kDepth, class P>
  void pack(std::int64_t first, std::int64_t count, std::int64_t column, std::int64_t width, P* to) const {
    visit(first, count, column, width, [&](auto* row, std::int64_t i) {
      P* depth = to + i / kGroup<P> * kGroup<P> * kPanel<A>;
      for (std::int64_t c = 0; c < width; c += kPanel<A>) {
        put_row(row + c, smaller(width - c, kPanel<A>), i % kGroup<P>, depth + c * kDepth);
      }
    });
  }

 private:
  template <class T, class F, class Offset>
  static void visit_rows(const T* rows, std::int64_t begin, std::int64_t end, std::int64_t width, const F& f,
                         const Offset& offset) {
    constexpr std::int64_t ahead = 6, line = 64 / static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t i = begin; i < end; ++i) {
      if (i + ahead < end) {
        const T* next = rows + offset(i + ahead);
        for (std::int64_t c = 0; c < width; c += line) __builtin_prefetch(next + c);
      }
      f(rows + offset(i), i);
    }
  }

  template <class T, class P>
  static void load_row(const T* row, std::int64_t width, P* to) {
    std::int64_t c = 0;
    for (; c + kLanes<A> <= width; c += kLanes<A>) Operand<P>::store_rounded(to + c, load(row + c));
    if (c < width) Operand<P>::store_rounded(to + c, load_partial(row + c, width - c));
  }

  // Makes a row one element of groups. The first element sets the others to 0.
  template <class T, class P>
  static void put_row(const T* row, std::int64_t width, std::int64_t element, P* groups) {
    const auto put = [element](P* to, Vec<A> value) {
      const Vec<A> spread = Operand<P>::spread(value, element);
      Operand<P>::store_groups(
          to, element == 0 ? spread : Operand<P>::merge(Operand<P>::load_groups(to), spread));
    };
    std::int64_t c = 0;
    for (; c + kLanes<A> <= width; c += kLanes<A>) put(groups + c * kGroup<P>, load(row + c));
    if (c < width) put(groups + c * kGroup<P>, load_partial(row + c, width - c));
  }
};

}  // namespace megalodon::cpu::MEGALODON_TARGET
