// What a job of the moving average works on: a strip of channels and a range of sequences, so that parameter
// gradients need no atomics. Time is cut into tiles, and a strip into blocks of channels: a tile of a block
// stays in the first-level cache. Forward takes all blocks of a strip through a tile before it goes on to the
// next one, since a block's tokens are a page of memory apart. Backward would have to keep the checkpoints of
// all of them, so its strips are single blocks.
#pragma once

#include "cpu/kernels/tile.h"

namespace megalodon::cpu::MEGALODON_TARGET {

inline constexpr std::int64_t kCemaTile = 64;      // tokens; backward keeps the state before each tile
inline constexpr std::int64_t kCemaChannels = 64;  // channels of a block, at most
inline constexpr std::int64_t kCemaBlocks = 8;     // blocks of a strip, at most: in the second-level cache
inline constexpr int kCemaScanGroup = 4;           // EMA dims whose state is in registers
inline constexpr int kCemaReverseGroup = 2;

enum CemaCoefficient { kP, kQRe, kQIm, kGammaRe, kGammaIm, kCemaCoefficientCount };

// How (channel, sequence) space is cut into jobs. Depends on the shape and the thread count only.
struct CemaPlan {
  std::int64_t channels, blocks, strip, groups;  // channels of a block, all blocks, those of a strip

  CemaPlan(std::int64_t dim, std::int64_t sequences, std::int64_t lanes, std::int64_t most_blocks,
           int threads) {
    const std::int64_t wanted = threads > 1 ? 2 * threads : 1;
    channels = kCemaChannels;
    while (channels > lanes && (dim + channels - 1) / channels < wanted) channels /= 2;
    blocks = (dim + channels - 1) / channels;
    strip = clamp(blocks / wanted, 1, most_blocks);
    groups = blocks >= wanted ? 1 : (wanted + blocks - 1) / blocks;
    if (groups > sequences) groups = sequences;
  }
  std::int64_t strips() const { return (blocks + strip - 1) / strip; }
  std::int64_t jobs() const { return strips() * groups; }

  // Whether jobs write an array past the caches: not where two of them share a cache line of it.
  bool writes_past_cache(const Tensor& array) const {
    return goes_past_cache(array) && channels * item_size(array.dtype) % kCacheLine == 0;
  }
};

// Between two tokens of a tile. One vector more than the channels, or a column of a tile would fall into a
// quarter of the sets of the first-level cache, and a few columns would not fit.
template <class A>
inline std::int64_t cema_tile_pitch(std::int64_t channels) {
  return channels + kLanes<A>;
}

// The part of the arrays that is one block: lanes of `width` channels from `channel` on, as dense vectors.
template <class A>
struct CemaLanes {
  static constexpr int W = kLanes<A>;
  bool real;
  std::int64_t channel, width, ndim, vectors;

  CemaLanes(const Cema& op, const CemaPlan& plan, std::int64_t block)
      : real(op.real), channel(block * plan.channels), ndim(op.p.size(1)), vectors(plan.channels / W) {
    const std::int64_t left = op.x.size(2) - channel;
    width = left < plan.channels ? left : plan.channels;
  }

  std::int64_t pitch() const { return vectors * W; }
  std::int64_t tile_pitch() const { return cema_tile_pitch<A>(pitch()); }

  // Tile `tile` of a sequence <-> tokens[kCemaTile][tile_pitch].
  static std::int64_t tokens_of(const Sequence& sequence, std::int64_t tile) {
    return clamp(sequence.length - tile * kCemaTile, 0, kCemaTile);
  }
  void load_tokens(const Tensor& from, const Sequence& sequence, std::int64_t tile, A* tokens) const {
    load_tile(from, sequence, tile * kCemaTile, tokens_of(sequence, tile), channel, width, tokens,
              tile_pitch());
  }
  void store_tokens(const A* tokens, const Tensor& to, const Sequence& sequence, std::int64_t tile,
                    bool past_cache) const {
    store_tile(to, sequence, tile * kCemaTile, tokens_of(sequence, tile), channel, width, tokens,
               tile_pitch(), past_cache);
  }
  // What brings that tile, if there is one: rows_ahead() rows of it at every scan of the tile before.
  TileAhead ahead(const Tensor& from, const Sequence& sequence, std::int64_t tile) const {
    return {from, sequence, tile * kCemaTile, tile < 0 ? 0 : tokens_of(sequence, tile), channel, width};
  }
  std::int64_t rows_ahead() const {
    const std::int64_t groups = ndim / kCemaScanGroup + ndim % kCemaScanGroup;
    const std::int64_t scans = groups * ((width + W - 1) / W);
    return (kCemaTile + scans - 1) / scans;
  }

  // Reads part (0 real, 1 imaginary) of a contiguous (D, N) or (D, N, parts) array into to[ndim][pitch] with
  // the given distance between two EMA dims.
  void gather(const A* from, int parts, int part, A* to, std::int64_t step) const {
    for (std::int64_t k = 0; k < ndim; ++k) {
      for (std::int64_t c = 0; c < pitch(); ++c) {
        const bool present = c < width && part < parts && from != nullptr;
        to[k * step + c] = present ? from[((channel + c) * ndim + k) * parts + part] : A(0);
      }
    }
  }

  template <class From>
  void scatter(const From* from, std::int64_t step, A* to, int parts, int part) const {
    if (part >= parts) return;
    for (std::int64_t k = 0; k < ndim; ++k) {
      for (std::int64_t c = 0; c < width; ++c) {
        to[((channel + c) * ndim + k) * parts + part] = static_cast<A>(from[k * step + c]);
      }
    }
  }

  int parts() const { return real ? 1 : 2; }

  // state[ndim][2][pitch] <-> row `index` of a (count, D, N, 2) array; an absent array reads as zeros.
  void load_state(const Tensor& from, std::int64_t index, A* state) const {
    const A* row = from.defined() ? from.as<const A>() + index * from.stride(0) : nullptr;
    for (int part = 0; part < 2; ++part) gather(row, parts(), part, state + part * pitch(), 2 * pitch());
  }
  void store_state(const A* state, const Tensor& to, std::int64_t index) const {
    A* row = to.as<A>() + index * to.stride(0);
    for (int part = 0; part < 2; ++part) scatter(state + part * pitch(), 2 * pitch(), row, parts(), part);
  }

  // coefficients[ndim][kCemaCoefficientCount][pitch]
  void load_coefficients(const Cema& op, A* to) const {
    const std::int64_t step = kCemaCoefficientCount * pitch();
    gather(op.p.as<const A>(), 1, 0, to + kP * pitch(), step);
    gather(op.q.as<const A>(), parts(), 0, to + kQRe * pitch(), step);
    gather(op.q.as<const A>(), parts(), 1, to + kQIm * pitch(), step);
    gather(op.gamma.as<const A>(), parts(), 0, to + kGammaRe * pitch(), step);
    gather(op.gamma.as<const A>(), parts(), 1, to + kGammaIm * pitch(), step);
  }

  void load_omega(const Tensor& omega, A* to) const {
    for (std::int64_t c = 0; c < pitch(); ++c) {
      to[c] = omega.defined() && c < width ? omega.as<const A>()[channel + c] : A(0);
    }
  }
};

// The blocks of one job's strip.
template <class A>
class CemaStrip {
 public:
  CemaStrip(const Cema& op, const CemaPlan& plan, std::int64_t index)
      : op_(op),
        plan_(plan),
        first_(index * plan.strip),
        count_(clamp(plan.blocks - first_, 0, plan.strip)) {}

  // f(lanes, b) for every block, b counting from 0.
  template <class F>
  void for_blocks(const F& f) const {
    for (std::int64_t b = 0; b < count_; ++b) f(block(b), b);
  }

  // Brings the tokens that follow on those of block b in a tile.
  TileAhead ahead(const Tensor& from, const Sequence& sequence, std::int64_t tile, std::int64_t b) const {
    return b + 1 < count_ ? block(b + 1).ahead(from, sequence, tile)
                          : block(0).ahead(from, sequence, tile + 1);
  }

 private:
  CemaLanes<A> block(std::int64_t b) const { return {op_, plan_, first_ + b}; }

  const Cema& op_;
  const CemaPlan& plan_;
  std::int64_t first_, count_;
};

template <class A>
inline const A* cema_coefficient(const A* coefficients, std::int64_t pitch, std::int64_t k, int which) {
  return coefficients + (k * kCemaCoefficientCount + which) * pitch;
}

// Those of K EMA dims from k on, of one vector of channels.
template <class A, int K>
struct CemaGroup {
  Vec<A> p[K], qr[K], qi[K], gr[K], gi[K];

  CemaGroup(const A* coefficients, std::int64_t pitch, std::int64_t k) {
    for (int j = 0; j < K; ++j) {
      p[j] = load(cema_coefficient(coefficients, pitch, k + j, kP));
      qr[j] = load(cema_coefficient(coefficients, pitch, k + j, kQRe));
      qi[j] = load(cema_coefficient(coefficients, pitch, k + j, kQIm));
      gr[j] = load(cema_coefficient(coefficients, pitch, k + j, kGammaRe));
      gi[j] = load(cema_coefficient(coefficients, pitch, k + j, kGammaIm));
    }
  }
};

// Calls f(k, K) over all EMA dims in groups of Group, then one by one; K is an integral constant.
template <int Value>
struct Constant {
  static constexpr int value = Value;
};
template <int Group, class F>
inline void for_groups(std::int64_t count, const F& f) {
  std::int64_t k = 0;
  for (; k + Group <= count; k += Group) f(k, Constant<Group>{});
  for (; k < count; ++k) f(k, Constant<1>{});
}

// Sequences [begin, end) of group g.
template <class F>
inline void for_sequences(const SequenceSpan& sequences, const CemaPlan& plan, std::int64_t group,
                          const F& f) {
  const std::int64_t end = sequences.count * (group + 1) / plan.groups;
  for (std::int64_t i = sequences.count * group / plan.groups; i < end; ++i) f(i, sequences.data[i]);
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
