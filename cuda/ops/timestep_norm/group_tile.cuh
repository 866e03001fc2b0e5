// One group of a tile of tokens, which a block has to itself. A team of lanes has a token: V channels of its
// group per lane. Each team takes every `teams`-th token of the tile.
//
// Where a team has a lane for each V channels, the lanes keep the tile in shared memory from the one time it
// is read (kHeld). A wider group is read again each time, from the cache.
#pragma once

#include "common/chain.cuh"
#include "common/sequences.cuh"
#include "common/types.cuh"

namespace megalodon::cuda {

inline constexpr int kTimestepThreads = 128;
inline constexpr int kTimestepWarps = kTimestepThreads / kWarp;
inline constexpr int kTeamTokens = 8;  // of a tile, at most
// On a multiprocessor at a time: as many as registers let through without spills.
template <bool kHeld>
inline constexpr int kNormalizeBlocks = kHeld ? 7 : 5;
inline constexpr int kDifferentiateBlocks = 4;

// What forward and backward share.
template <class T>
struct TimestepArgs {
  Tiles tiles;
  Tokens<const T> x;
  Global<const Acc<T>> weight, bias;  // (D,) or absent
  Global<const std::int64_t> initial_count;
  Global<const Acc<T>> initial_mean, initial_var;
  Chain statistics;            // links (tiles, G): mean and squares
  Global<double> token_mean;   // (B, L, G), which backward reads and forward writes if it is to keep them
  Global<Acc<T>> token_scale;  // the same: rsqrt(var + eps)
  std::int64_t groups, width;  // D = groups width
  int team;                    // lanes: a power of two
  double eps;
};

// Lanes of a team for groups of this width.
inline int team_of(std::int64_t width, int vector) {
  int team = 1;
  while (team < kWarp && team * vector < width) team *= 2;
  return team;
}

inline std::int64_t tile_tokens(int team) {
  return std::min<std::int64_t>(kTimestepThreads, kTimestepThreads / team * kTeamTokens);
}

// What a block has, and where its thread stands in it. A tile that does not exist has no tokens.
struct GroupTile {
  Tile tile;
  Sequence sequence;
  std::int64_t link, g;  // of (tiles, G)
  int tokens;
  int team, teams, own, lane;  // lanes of a team, teams of the block, the thread's team, its lane in it
};

template <class T>
MEGALODON_DEVICE GroupTile group_tile(const TimestepArgs<T>& op, std::int64_t link) {
  GroupTile at{.link = link, .g = link % op.groups, .team = op.team};
  at.tile = tile_at(op.tiles, link / op.groups);
  at.sequence = sequence_at(op.tiles.sequences, at.tile.sequence);
  at.tokens = static_cast<int>(at.tile.tokens);
  at.teams = kTimestepThreads / op.team;
  at.own = thread_index() / op.team;
  at.lane = thread_index() % op.team;
  return at;
}

MEGALODON_DEVICE bool is_first(const GroupTile& at) { return at.tile.first == 0; }
MEGALODON_DEVICE bool is_last(const GroupTile& at) {
  return at.tile.first + at.tile.tokens == at.sequence.length;
}

// How many tokens there were before this call.
template <class T>
MEGALODON_DEVICE double initial_count(const TimestepArgs<T>& op, std::int64_t s) {
  return static_cast<double>(op.initial_count ? op.initial_count[s] : 0);
}

// And before the tile.
template <class T>
MEGALODON_DEVICE double count_before(const TimestepArgs<T>& op, const GroupTile& at) {
  return initial_count(op, at.tile.sequence) + static_cast<double>(at.tile.first);
}

// Where the kept statistics of token t of the tile lie.
template <class T>
MEGALODON_DEVICE std::int64_t kept_at(const TimestepArgs<T>& op, const GroupTile& at, int t) {
  const std::int64_t row = at.sequence.row * op.tiles.sequences.length + at.sequence.begin;
  return (row + at.tile.first + t) * op.groups + at.g;
}

// Where token t of the tile begins in an array, its group's channels first.
template <class T, class E>
MEGALODON_DEVICE Global<E> group_of(const TimestepArgs<T>& op, const GroupTile& at, const Tokens<E>& array,
                                    int t) {
  const std::int64_t time = time_of(op.tiles.sequences, at.sequence, at.tile.first + t);
  return token(array, at.sequence.row, time) + at.g * op.width;
}

// An array as the block has it. Every lane reads back only what it wrote itself.
template <bool kHeld, int V, class T>
struct Rows {
  static constexpr int kTokens = kHeld ? 4 : 1;  // that a lane takes at a time
  Tokens<const T> from;
  Shared<Pack<T, V>> packs;  // (kTeamTokens, threads), if held
};

template <bool kHeld, int V, class T>
inline constexpr std::int64_t kRowsBytes =
    kHeld ? shared_size<Pack<T, V>>(kTeamTokens * kTimestepThreads) : 0;

template <bool kHeld, int V, class T>
MEGALODON_DEVICE Rows<kHeld, V, T> take_rows(SharedMemory& memory, const Tokens<const T>& from) {
  if constexpr (kHeld) {
    return {from, memory.take<Pack<T, V>>(kTeamTokens * kTimestepThreads)};
  } else {
    return {from, {}};
  }
}

// The thread's token number j of those from number `first` on.
MEGALODON_DEVICE int token_of(const GroupTile& at, int first, int j) {
  return (first + j) * at.teams + at.own;
}

// What a lane keeps of a tile, on its way to shared memory.
template <int V, class T>
struct Fetched {
  Pack<T, V> pack[kTeamTokens];
};

// Reads are under way, all at a time, until `keep` waits for them.
template <bool kHeld, int V, class T>
MEGALODON_DEVICE Fetched<V, T> fetch(const TimestepArgs<T>& op, const GroupTile& at,
                                     const Rows<kHeld, V, T>& rows) {
  Fetched<V, T> fetched;
  if constexpr (kHeld) {
#pragma unroll
    for (int j = 0; j < kTeamTokens; ++j) {
      const int t = token_of(at, 0, j);
      if (t >= at.tokens || at.lane * V >= op.width) continue;
      fetched.pack[j] = load_pack<V>(group_of(op, at, rows.from, t), at.lane * V);
    }
  }
  return fetched;
}

template <bool kHeld, int V, class T>
MEGALODON_DEVICE void keep(const TimestepArgs<T>& op, const GroupTile& at, const Rows<kHeld, V, T>& rows,
                           const Fetched<V, T>& fetched) {
  if constexpr (kHeld) {
#pragma unroll
    for (int j = 0; j < kTeamTokens; ++j) {
      if (token_of(at, 0, j) >= at.tokens || at.lane * V >= op.width) continue;
      rows.packs[j * kTimestepThreads + thread_index()] = fetched.pack[j];
    }
  }
}

// f(c, values) for the lane's channels of the token, c counting from the start of the group.
template <bool kHeld, int V, class T, class F>
MEGALODON_DEVICE void for_packs(const TimestepArgs<T>& op, const GroupTile& at, const Rows<kHeld, V, T>& rows,
                                int first, int j, const F& f) {
  const int t = token_of(at, first, j);
  if (t >= at.tokens) return;
  Acc<T> values[V];
  if constexpr (kHeld) {
    if (at.lane * V >= op.width) return;
    unpack(rows.packs[(first + j) * kTimestepThreads + thread_index()], values);
    f(at.lane * V, values);
  } else {
    const Global<const T> row = group_of(op, at, rows.from, t);
    for (std::int64_t c = at.lane * V; c < op.width; c += at.team * V) {
      load<V>(row, c, values);
      f(c, values);
    }
  }
}

// The same for two arrays: f(c, values of one, values of the other).
template <bool kHeld, int V, class T, class F>
MEGALODON_DEVICE void for_pairs(const TimestepArgs<T>& op, const GroupTile& at, const Rows<kHeld, V, T>& one,
                                const Rows<kHeld, V, T>& other, int first, int j, const F& f) {
  for_packs(op, at, one, first, j, [&](std::int64_t c, const Acc<T>(&values)[V]) {
    Acc<T> others[V];
    if constexpr (kHeld) {
      unpack(other.packs[(first + j) * kTimestepThreads + thread_index()], others);
    } else {
      load<V>(group_of(op, at, other.from, token_of(at, first, j)), c, others);
    }
    f(c, values, others);
  });
}

// Sums over a team, the same bits in all its lanes.
template <int N, class A>
MEGALODON_DEVICE void team_sum(const GroupTile& at, A (&values)[N]) {
  for (int step = at.team / 2; step > 0; step /= 2) {
#pragma unroll
    for (int n = 0; n < N; ++n) values[n] += warp_shuffle(values[n], lane_index() ^ step);
  }
}

// V values of a parameter from channel c of the group on, `absent` where there is none.
template <int V, class T>
MEGALODON_DEVICE void load_or(const TimestepArgs<T>& op, const GroupTile& at,
                              const Global<const Acc<T>>& from, std::int64_t c, Acc<T> absent,
                              Acc<T> (&to)[V]) {
#pragma unroll
  for (int e = 0; e < V; ++e) to[e] = absent;
  if (from && c < op.width) load<V>(from, at.g * op.width + c, to);
}

}  // namespace megalodon::cuda
