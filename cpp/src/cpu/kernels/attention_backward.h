// Backward attention: recomputes the probabilities of one tile of queries at a time.
//
//   P = softmax(S)      dP = dY V^T      dS = P (dP - rowsum(P dP))
//   dQ = scale dS K     dK = scale dS^T Q     dV = P^T dY
//
// As in forward, the two products that read values or dY are of operands of the type parameter.
//
// One head of one chunk is a job. Its tiles follow one another, because each adds to the gradients of the
// keys and values before it; within a tile the keys are cut into blocks, which touch disjoint rows of those
// gradients. Threads share out the jobs where there are enough, else the blocks of one job after another.
#pragma once

#include "cpu/kernels/attention_backward_space.h"

namespace megalodon::cpu::MEGALODON_TARGET {

template <class P>
class BackwardTile {
  using A = Acc<P>;

 public:
  BackwardTile(const BackwardJob<P>& job, const QueryTile<A>& tile)
      : job_(job),
        op_(job.op),
        space_(job.space),
        tile_(tile),
        keys_{op_.initial_k, op_.k, job.chunk, job.head},
        values_{op_.initial_v, op_.v, job.chunk, job.head},
        dropout_(op_, job.chunk, job.head) {}

  void run() const {
    pack(op_.q, static_cast<A>(op_.scale), space_.queries, space_.queries_t);
    pack(op_.dy, A(1), space_.dy, space_.dy_t);
    for_blocks(
        [&](std::int64_t block, std::int64_t first, std::int64_t last) { scores(block, first, last); });
    for_rows([&](std::int64_t row) { finish_shift(row); });
    for_blocks(
        [&](std::int64_t block, std::int64_t first, std::int64_t last) { weights(block, first, last); });
    for_rows([&](std::int64_t row) { finish_sums(row); });
    for_blocks([&](std::int64_t, std::int64_t first, std::int64_t last) {
      differentiate_softmax(first, last);
      transposed_product(reinterpret_cast<const P*>(space_.scores), kWeightPitch, space_.stride * kGroup<P>,
                         tile_, first, last, space_.dy, job_.sizes.value_dim, space_.dv, space_.value_pitch);
      transposed_product(space_.dscores, kPanel<A>, space_.stride, tile_, first, last, space_.queries,
                         job_.sizes.key_dim, space_.dk, space_.key_pitch);
    });
    const std::int64_t columns = space_.key_pitch / kPanel<A>;
    parallel_for(columns * tile_.panels(), job_.threads,
                 [&](std::int64_t i) { query_gradient(i / columns, i % columns * kPanel<A>); });
  }

 private:
  template <class F>
  void for_blocks(const F& f) const {
    parallel_for((tile_.keys() - 1) / kKeyRows + 1, job_.threads, [&](std::int64_t block) {
      f(block, block * kKeyRows, smaller(tile_.keys(), (block + 1) * kKeyRows));
    });
  }

  template <class F>
  void for_rows(const F& f) const {
    for (std::int64_t row = 0; row < tile_.rows; row += kLanes<A>) f(row);
  }

  ScorePanel<A> panel_of(A* scores, std::int64_t panel) const {
    return {scores + panel * space_.stride, tile_.panel_first(panel), tile_.panel_rows(panel)};
  }

  A* of_block(A* statistics, std::int64_t block, std::int64_t panel) const {
    return statistics + block * space_.tile_rows + panel * kPanel<A>;
  }

  // As right operands whose depth is the rows, and the columns.
  template <class Q>
  void pack(const Tensor& from, A scale, Q* to, Q* transposed) const {
    const std::int64_t dim = from.size(3);
    parallel_for((dim - 1) / kPanel<A> + 1, job_.threads, [&](std::int64_t i) {
      const std::int64_t column = i * kPanel<A>;
      A* packed = job_.own_space().panel;
      pack_queries(from, job_.chunk, job_.head, tile_, column, scale, packed);
      group_queries(packed, tile_, to + column * tile_.padded_rows());
      transpose_queries(packed, tile_, column, dim, transposed);
    });
  }

  void scores(std::int64_t block, std::int64_t first, std::int64_t last) const {
    const PackingSpace<P> own = job_.own_space();
    const std::int64_t dim = job_.sizes.key_dim;
    keys_.load_rows(first, last - first, 0, dim, own.keys, space_.key_pitch);
    score_product(own.keys, space_.key_pitch, first, last - first, space_.queries_t, dim, dim, tile_,
                  space_.scores, space_.stride, false);
    for (std::int64_t panel = 0; panel < tile_.panels(); ++panel) {
      const ScorePanel<A> scores = panel_of(space_.scores, panel);
      const std::int64_t visible = smaller(last, tile_.panel_keys(panel));
      scores.mask(first, visible, dropout_);
      scores.maxima(first, visible, of_block(space_.maxima, block, panel));
    }
  }

  void finish_shift(std::int64_t row) const {
    Vec<A> highest = load(space_.maxima + row);
    for (std::int64_t key = kKeyRows; key < tile_.keys(); key += kKeyRows) {
      highest = max(highest, load(space_.maxima + key / kKeyRows * space_.tile_rows + row));
    }
    store(space_.shift + row, softmax_shift<A>(highest, dropout_));
  }

  // Scores become exponentials, and dP takes shape beside them.
  void weights(std::int64_t block, std::int64_t first, std::int64_t last) const {
    const PackingSpace<P> own = job_.own_space();
    const std::int64_t dim = job_.sizes.value_dim;
    for (std::int64_t column = 0; column < dim; column += kValueDepth<P>) {
      const std::int64_t depth = smaller(kValueDepth<P>, dim - column);
      values_.load_rows(first, last - first, column, depth, own.values, kValueDepth<P>);
      score_product(own.values, kValueDepth<P>, first, last - first, space_.dy_t + column * kPanel<A>,
                    round_up(dim, kGroup<P>), depth, tile_, space_.dscores, space_.stride, column > 0);
    }
    for (std::int64_t panel = 0; panel < tile_.panels(); ++panel) {
      const ScorePanel<A> scores = panel_of(space_.scores, panel), dscores = panel_of(space_.dscores, panel);
      const std::int64_t visible = smaller(last, tile_.panel_keys(panel));
      dscores.fill_later_keys(first, visible, 0);
      scores.exponentiate(first, visible, space_.shift + panel * kPanel<A>,
                          of_block(space_.sums, block, panel), scores.data);
      add_products(scores, dscores, first, visible, of_block(space_.mean_sums, block, panel));
    }
  }

  // sums[i] = sum over keys of weights * values.
  static void add_products(const ScorePanel<A>& weights, const ScorePanel<A>& values, std::int64_t first,
                           std::int64_t last, A* sums) {
    with_vectors<A>(weights.rows, [&](auto vectors) {
      Vec<A> sum[vectors] = {};
      for (std::int64_t key = first; key < last; ++key) {
        for (int j = 0; j < vectors; ++j) sum[j] += load(weights.at(key, j)) * load(values.at(key, j));
      }
      for (int j = 0; j < vectors; ++j) store(sums + j * kLanes<A>, sum[j]);
    });
  }

  void finish_sums(std::int64_t row) const {
    Vec<A> sum = {}, mean = {};
    for (std::int64_t key = 0; key < tile_.keys(); key += kKeyRows) {
      sum += load(space_.sums + key / kKeyRows * space_.tile_rows + row);
      mean += load(space_.mean_sums + key / kKeyRows * space_.tile_rows + row);
    }
    const Vec<A> inverse = softmax_inverse<A>(sum);
    store(space_.inverse + row, inverse);
    store(space_.mean + row, mean * inverse);
  }

  // Exponentials become P, at the start of their rows, and dP becomes dS.
  void differentiate_softmax(std::int64_t first, std::int64_t last) const {
    for (std::int64_t panel = 0; panel < tile_.panels(); ++panel) {
      const ScorePanel<A> scores = panel_of(space_.scores, panel), dscores = panel_of(space_.dscores, panel);
      const A* inverse = space_.inverse + panel * kPanel<A>;
      const A* mean = space_.mean + panel * kPanel<A>;
      for (std::int64_t key = first; key < smaller(last, tile_.panel_keys(panel)); ++key) {
        for (std::int64_t i = 0; i < scores.rows; i += kLanes<A>) {
          A* row = scores.data + key * kPanel<A>;
          A* gradient = dscores.data + key * kPanel<A> + i;
          const Vec<A> p = load(row + i) * load(inverse + i);
          Operand<P>::store_rounded(reinterpret_cast<P*>(row) + i, p);
          store(gradient, p * (load(gradient) - load(mean + i)));
        }
      }
    }
  }

  // Columns [column, column + kPanel) of dQ for the rows of one panel.
  void query_gradient(std::int64_t panel, std::int64_t column) const {
    const PackingSpace<P> own = job_.own_space();
    const std::int64_t columns = smaller(kPanel<A>, job_.sizes.key_dim - column);
    for (std::int64_t first = 0; first < tile_.panel_keys(panel); first += kKeyRows) {
      const std::int64_t last = smaller(tile_.panel_keys(panel), first + kKeyRows);
      keys_.load_rows(first, last - first, column, columns, own.panel, kPanel<A>);
      weighted_product(space_.dscores + panel * space_.stride, tile_, panel, first, last, own.panel, columns,
                       own.result, kPanel<A>, first > 0);
    }
    const std::int64_t rows = tile_.panel_rows(panel), idle = panel == 0 ? tile_.idle : 0;
    const A scale = static_cast<A>(op_.scale);
    for (std::int64_t i = idle * kPanel<A>; i < rows * kPanel<A>; i += kLanes<A>) {
      store(own.result + i, load(own.result + i) * scale);
    }
    store_tile(op_.dq, job_.chunk.tokens, job_.chunk.token(tile_.panel_first(panel) + idle), rows - idle,
               job_.head * op_.dq.stride(2) + column, columns, own.result + idle * kPanel<A>, kPanel<A>);
  }

  static constexpr std::int64_t kWeightPitch = kPanel<A> * kGroup<P>;  // between the keys of a panel of P

  const BackwardJob<P>& job_;
  const ChunkAttentionBackward& op_;
  const BackwardSpace<P>& space_;
  const QueryTile<A>& tile_;
  PositionRows<A> keys_, values_;
  Dropout dropout_;
};

}  // namespace megalodon::cpu::MEGALODON_TARGET
