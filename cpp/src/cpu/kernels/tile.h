// Moves a tile of (time, channel) between a (B, L, D) array of any storage type and a dense buffer of the
// accumulation type. Padding, packing, strides and 16-bit types end here: kernels see dense tiles only.
#pragma once

#include "cpu/kernels/rows.h"

namespace megalodon::cpu::MEGALODON_TARGET {

inline std::int64_t position_of(const Sequence& sequence, std::int64_t token) {
  return sequence.position != nullptr ? sequence.position[token] : sequence.begin + token;
}

// Tokens [first, first + count) of the sequence, channels [channel, channel + width) -> to[count][pitch].
// Lanes from width up to the next multiple of a vector are set to 0; pitch is such a multiple.
template <class A, class T>
inline void load_tile_as(const Tensor& from, const Sequence& sequence, std::int64_t first, std::int64_t count,
                         std::int64_t channel, std::int64_t width, A* to, std::int64_t pitch) {
  constexpr int lanes = kLanes<A>;
  const T* base = from.as<const T>() + sequence.row * from.stride(0) + channel;
  for (std::int64_t j = 0; j < count; ++j) {
    const T* row = base + position_of(sequence, first + j) * from.stride(1);
    A* out = to + j * pitch;
    std::int64_t c = 0;
    for (; c + lanes <= width; c += lanes) store(out + c, load(row + c));
    if (c < width) store(out + c, load_partial(row + c, width - c));
  }
}

template <class A, class T>
inline void store_tile_as(const Tensor& to, const Sequence& sequence, std::int64_t first, std::int64_t count,
                          std::int64_t channel, std::int64_t width, const A* from, std::int64_t pitch,
                          bool past_cache) {
  constexpr int lanes = kLanes<A>;
  T* base = to.as<T>() + sequence.row * to.stride(0) + channel;
  with_output(past_cache, [&](auto output) {
    for (std::int64_t j = 0; j < count; ++j) {
      T* row = base + position_of(sequence, first + j) * to.stride(1);
      const A* in = from + j * pitch;
      std::int64_t c = 0;
      for (; c + lanes <= width; c += lanes) output.write(AllLanes<A>{}, row + c, load(in + c));
      if (c < width) store_partial(row + c, load(in + c), width - c);
    }
  });
}

template <class A>
inline void load_tile(const Tensor& from, const Sequence& sequence, std::int64_t first, std::int64_t count,
                      std::int64_t channel, std::int64_t width, A* to, std::int64_t pitch) {
  with_storage(from.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    if constexpr (std::is_same_v<Acc<T>, A>) {
      load_tile_as<A, T>(from, sequence, first, count, channel, width, to, pitch);
    }
  });
}

// Past the caches only where goes_past_cache(to), and from a channel that is a multiple of a vector.
template <class A>
inline void store_tile(const Tensor& to, const Sequence& sequence, std::int64_t first, std::int64_t count,
                       std::int64_t channel, std::int64_t width, const A* from, std::int64_t pitch,
                       bool past_cache = false) {
  with_storage(to.dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    if constexpr (std::is_same_v<Acc<T>, A>) {
      store_tile_as<A, T>(to, sequence, first, count, channel, width, from, pitch, past_cache);
    }
  });
}

// Brings the memory of the tile that will be loaded next towards the core, a few rows at a time between
// pieces of work on the tile at hand. Its rows lie a row of the array apart, where the machine would not look
// ahead.
class TileAhead {
 public:
  // `count` may be less than 1 where no tile follows.
  TileAhead(const Tensor& from, const Sequence& sequence, std::int64_t first, std::int64_t count,
            std::int64_t channel, std::int64_t width)
      : sequence_(&sequence),
        token_(first),
        end_(first + count),
        row_bytes_(width * item_size(from.dtype)),
        step_(from.stride(1) * item_size(from.dtype)),
        base_(static_cast<const char*>(from.data) +
              (sequence.row * from.stride(0) + channel) * item_size(from.dtype)) {}

  void bring(std::int64_t rows) {
    for (; rows > 0 && token_ < end_; --rows, ++token_) {
      const char* row = base_ + position_of(*sequence_, token_) * step_;
      for (std::int64_t i = 0; i < row_bytes_; i += kCacheLine) prefetch(row + i);
    }
  }

 private:
  const Sequence* sequence_;
  std::int64_t token_, end_, row_bytes_, step_;
  const char* base_;
};

// Writes 0 at the padded positions of a contiguous (B, L, ...) output, which no sequence visits.
inline void zero_padding(const Tensor& output, const SequenceSpan& sequences, int threads) {
  if (sequences.padding == nullptr) return;
  const Tensor& mask = *sequences.padding;
  const std::int64_t length = output.size(1);
  const auto bytes = static_cast<std::size_t>(output.stride(1) * item_size(output.dtype));
  parallel_for(output.size(0), threads, [&](std::int64_t row) {
    for (std::int64_t t = 0; t < length; ++t) {
      if (mask.as<const std::uint8_t>()[row * mask.stride(0) + t * mask.stride(1)] != 0) {
        std::memset(output.as<char>() + static_cast<std::size_t>(row * length + t) * bytes, 0, bytes);
      }
    }
  });
}

// Runs f with a null pointer of the accumulation type of the given activation type.
template <class F>
inline void with_accumulator(DType activation, F&& f) {
  if (activation == DType::float64) return f(static_cast<double*>(nullptr));
  return f(static_cast<float*>(nullptr));
}

}  // namespace megalodon::cpu::MEGALODON_TARGET
