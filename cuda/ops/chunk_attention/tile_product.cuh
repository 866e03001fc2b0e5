// The product of a block on tensor cores: sums (128, 128) = a (128, depth) b (depth, 128), in steps of 32
// deep. Stages of shared memory are filled ahead of the step that is multiplied.
//
// An operand is an object that knows where its elements are:
//
//   kDeep                      lines of its tiles are depths; otherwise rows of a, or columns of b
//   fetch(operand, step, to)   brings the step's pieces to stage step % kStages
//
// An `a` with kScaled multiplies its rows by factors that change with depth (fetch_factors). A deep `b` may
// change what it fetched before it is multiplied (inspect).
#pragma once

#include "common/run.cuh"
#include "common/warp_product.cuh"

namespace megalodon::cuda {

inline constexpr int kTile = 128;
inline constexpr int kStep = 32;
inline constexpr int kStages = 3;
inline constexpr int kProductThreads = 128;
inline constexpr int kPart = 64;  // of rows and of columns, that a warp multiplies
inline constexpr int kPiece = 8;  // elements that are fetched as one

template <bool kDeep>
inline constexpr int kLineWidth = kDeep ? kTile : kStep;
template <bool kDeep>
inline constexpr int kLinePitch = tile_pitch(kLineWidth<kDeep>);
template <bool kDeep>
inline constexpr int kStageSize = (kDeep ? kStep : kTile) * kLinePitch<kDeep>;

template <class T>
struct Stages {
  Shared<T> a, b;
  Shared<T> factors;  // (kStages, kTile) of the rows of a
};

template <class A, class B, class T>
MEGALODON_DEVICE Stages<T> take_stages(SharedMemory& memory) {
  Stages<T> stages;
  stages.a = memory.take<T>(kStages * kStageSize<A::kDeep>);
  stages.b = memory.take<T>(kStages * kStageSize<B::kDeep>);
  if constexpr (A::kScaled) stages.factors = memory.take<T>(kStages * kTile);
  return stages;
}

template <class A, class B, class T>
constexpr std::int64_t stages_bytes() {
  return shared_size<T>(kStages * kStageSize<A::kDeep>) + shared_size<T>(kStages * kStageSize<B::kDeep>) +
         (A::kScaled ? shared_size<T>(kStages * kTile) : 0);
}

// A warp's part of the sums: 16 x 8 elements each.
struct Sums {
  float at[kPart / 16][kPart / 8][4];
};

MEGALODON_DEVICE int warp_row() { return warp_index() / 2 * kPart; }
MEGALODON_DEVICE int warp_column() { return warp_index() % 2 * kPart; }

// The row of the sums that a thread's m < 8 numbers.
MEGALODON_DEVICE int thread_row(int m) { return warp_row() + m / 2 * 16 + sum_row(m % 2 * 2); }

// Calls f(m, row) for each row of the thread.
template <class F>
MEGALODON_DEVICE void each_row(const F& f) {
#pragma unroll
  for (int m = 0; m < kPart / 8; ++m) f(m, thread_row(m));
}

// Calls f(m, row, column, x, y) for each two neighbours of the thread.
template <class F>
MEGALODON_DEVICE void each_pair(Sums& sums, const F& f) {
#pragma unroll
  for (int m = 0; m < kPart / 8; ++m) {
#pragma unroll
    for (int n = 0; n < kPart / 8; ++n) {
      float (&pair)[4] = sums.at[m / 2][n];
      f(m, thread_row(m), warp_column() + n * 8 + sum_column(0), pair[m % 2 * 2], pair[m % 2 * 2 + 1]);
    }
  }
}

// Calls f(line, from, i) for the thread's pieces of a stage: elements [from, from + 8) of a line, which lie
// at i.
template <bool kDeep, class F>
MEGALODON_DEVICE void each_piece(int stage, const F& f) {
  constexpr int per_line = kLineWidth<kDeep> / kPiece;
#pragma unroll
  for (int e = 0; e < kTile * kStep / kPiece / kProductThreads; ++e) {
    const int piece = thread_index() + e * kProductThreads;
    const int line = piece / per_line, from = piece % per_line * kPiece;
    f(line, from, stage * kStageSize<kDeep> + line * kLinePitch<kDeep> + from);
  }
}

template <class T, class A, class B>
MEGALODON_DEVICE void fetch_stage(const Stages<T>& stages, int step, const A& a, const B& b) {
  fetch(a, step, stages.a);
  fetch(b, step, stages.b);
  if constexpr (A::kScaled) {
    const int from = thread_index() * kPiece;
    if (from < kTile) fetch_factors(a, step, from, stages.factors, step % kStages * kTile + from);
  }
}

// The factors of the thread's rows, by halves of the 16 rows of a product.
template <class T>
MEGALODON_DEVICE void read_factors(const Stages<T>& stages, int stage, T (&factors)[kPart / 8]) {
  each_row([&](int m, int row) { factors[m] = stages.factors[stage * kTile + row]; });
}

template <class T, class A, class B>
MEGALODON_DEVICE void multiply_stage(const Stages<T>& stages, int stage, Sums& sums) {
  constexpr int pitch_a = kLinePitch<A::kDeep>, pitch_b = kLinePitch<B::kDeep>;
  T factors[kPart / 8];
  if constexpr (A::kScaled) read_factors(stages, stage, factors);
#pragma unroll
  for (int k = 0; k < kStep; k += 16) {
    std::uint32_t a[kPart / 16][4], b[kPart / 16][2][2];
#pragma unroll
    for (int m = 0; m < kPart / 16; ++m) {
      load_a<A::kDeep>(stages.a + stage * kStageSize<A::kDeep>, pitch_a, warp_row() + 16 * m, k, a[m]);
      if constexpr (A::kScaled) scale_rows(a[m], factors[2 * m], factors[2 * m + 1]);
    }
#pragma unroll
    for (int n = 0; n < kPart / 16; ++n) {
      load_b<B::kDeep>(stages.b + stage * kStageSize<B::kDeep>, pitch_b, warp_column() + 16 * n, k, b[n]);
    }
#pragma unroll
    for (int m = 0; m < kPart / 16; ++m) {
#pragma unroll
      for (int n = 0; n < kPart / 8; ++n) multiply_add(T{}, sums.at[m][n], a[m], b[n / 2][n % 2]);
    }
  }
}

// Of the first `rows` and `columns`, at least; the other sums are of whatever the operands fetch there, or 0.
template <class T, class A, class B>
MEGALODON_DEVICE void tile_product(const Stages<T>& stages, int steps, const A& a, const B& b,
                                   std::int64_t rows, std::int64_t columns, Sums& sums) {
  sums = {};
  const bool busy = warp_row() < rows && warp_column() < columns;
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) fetch_stage(stages, step, a, b);
    copies_commit();
  }
  for (int step = 0; step < steps; ++step) {
    copies_wait<kStages - 2>();
    if constexpr (B::kDeep) inspect(b, step, stages.b);
    block_barrier();  // the stage is there, and the one before it is done with
    if (step + kStages - 1 < steps) fetch_stage(stages, step + kStages - 1, a, b);
    copies_commit();
    if (busy) multiply_stage<T, A, B>(stages, step % kStages, sums);
  }
  block_barrier();
}

// What a thread has for each of its rows (m of each_pair), combined over the columns of the block in a fixed
// order. `scratch` has 2 kTile elements.
template <class Combine>
MEGALODON_DEVICE void combine_rows(const Shared<float>& scratch, float (&value)[kPart / 8],
                                   const Combine& combine) {
  each_row([&](int m, int row) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      value[m] = combine(value[m], warp_shuffle(value[m], lane_index() ^ step));
    }
    if (lane_index() % 4 == 0) scratch[warp_column() / kPart * kTile + row] = value[m];
  });
  block_barrier();
  each_row([&](int m, int row) { value[m] = combine(scratch[row], scratch[kTile + row]); });
  block_barrier();
}

}  // namespace megalodon::cuda
