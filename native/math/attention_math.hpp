// Attention of some tokens to the keys and values of all before them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "math/kernels.hpp"
#include "math/kv_tiles.hpp"
#include "math/thread_pool.hpp"
#include "math/token_rows.hpp"

namespace flash_llm {

// How positions turn queries and keys: number i of a head is turned with number i +
// frequencies.size(), and both are multiplied by `scale`.
struct Rotation {
  std::vector<double> frequencies;
  float scale;
};

struct AttentionShape {
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t head_dim;
  std::int64_t context;             // tokens of the KV cache
  std::int64_t most_tokens;         // at once
  int kv_bits;                      // 8 or 16
  std::vector<Rotation> rotations;  // that layers have, of as many numbers each
  float soft_cap;                   // of scores, see Queries

  std::int64_t group() const { return heads / kv_heads; }
  std::int64_t query_width() const { return heads * head_dim; }
  std::int64_t pairs() const {
    return rotations.empty() ? 0 : static_cast<std::int64_t>(rotations.front().frequencies.size());
  }
  std::int64_t qkv_width() const { return (heads + 2 * kv_heads) * head_dim; }
  KvTiles tiles() const { return {kv_bits, head_dim}; }
  // Of a layer's cache: a ring of whole segments where tokens see only so many others. What tokens
  // see that share a call is still there when all of them have come.
  std::int64_t cache_tiles(std::int64_t window) const {
    constexpr std::int64_t tiles = kSegmentTokens / kTileTokens;
    const std::int64_t whole = (context + kTileTokens - 1) / kTileTokens;
    const std::int64_t segments = (window + most_tokens + kSegmentTokens - 1) / kSegmentTokens;
    return window == 0 ? whole : std::min(whole, segments * tiles);
  }
};

// What layers differ in.
struct LayerReach {
  int rotation;         // which of the shape's; -1: none
  std::int64_t window;  // how many tokens a query sees at most, itself included; 0: all
};

// How much room it takes to compute, in numbers.
struct AttentionRoom {
  std::int64_t angles;   // cosines, and as many sines
  std::int64_t steps;    // of queries
  std::int64_t scales;
  std::int64_t rows;     // float
  std::int64_t scores;   // of a thread
  std::int64_t unit_rows;

  explicit AttentionRoom(const AttentionShape& shape);
  std::size_t bytes(int threads) const;
};

// Each query's attention is computed segment by segment of the context and put together in their
// order: results are the same bytes for any number of threads, and however tokens are divided among
// calls. Of few tokens threads share heads and segments, of many heads and tokens.
class AttentionMath {
 public:
  // Allocates all that it needs.
  AttentionMath(const AttentionShape& shape, const Kernels& kernels, int threads);

  const AttentionShape& shape() const { return shape_; }

  // out [tokens, query width] of queries, keys and values, which lie side by side in qkv [tokens,
  // qkv width], of tokens from `position` on. Keys and values go to their places in a layer's cache
  // [kv heads, cache_tiles of its window]; qkv is turned in place. `sinks`, one for each head or none:
  // a score that takes its share of the softmax, of which nothing is added.
  void attend(ThreadPool& pool, const LayerReach& reach, const std::vector<float>& sinks,
              std::uint8_t* cache, Outputs qkv, std::int64_t position, Outputs out);

 private:
  struct Scratch {
    std::vector<float> scores;
    std::vector<float> rows;
  };
  // How a call is shared out: heads that share keys, `block` tokens and `range` segments a unit.
  struct Units {
    std::int64_t window;
    std::int64_t tiles;  // of the cache
    std::int64_t position;
    std::int64_t tokens;
    std::int64_t block;
    std::int64_t blocks;
    std::int64_t range;
    std::int64_t ranges;
  };

  Units units(std::int64_t window, std::int64_t position, std::int64_t tokens) const;
  void find_angles(std::int64_t position, std::int64_t tokens);
  void take_in(const LayerReach& reach, std::uint8_t* cache, float* qkv, std::int64_t position,
               std::int64_t token);
  void turn(int rotation, float* head, std::int64_t token) const;
  void put_query(const float* query, std::size_t place);
  void put_key(std::uint8_t* tile, std::int64_t place, const float* key) const;
  void put_value(std::uint8_t* tile, std::int64_t place, const float* value) const;
  void attend_unit(const Units& units, std::int64_t unit, const std::uint8_t* cache,
                   Scratch& scratch);
  void put_together(const Units& units, const std::vector<float>& sinks, std::int64_t token,
                    float* out);
  // A query's, of a range of segments.
  AttendedRow row(const Units& units, std::int64_t range, std::int64_t kv_head,
                  std::int64_t token, std::int64_t head);

  const AttentionShape shape_;
  const KvTiles tiles_;
  const Kernels& kernels_;
  std::int64_t angles_position_ = -1;  // whose angles there are, and of how many tokens
  std::int64_t angles_tokens_ = 0;
  std::vector<float> cosines_;  // [rotations, most tokens, pairs]
  std::vector<float> sines_;
  std::vector<std::int16_t> steps_;  // of queries [kv heads, tokens, group, head_dim]
  std::vector<float> scales_;        // [kv heads, tokens, group, blocks]
  std::vector<CacheLine> rows_;      // [ranges, kv heads, tokens, group, AttendedRow]
  std::vector<Scratch> scratch_;     // one for each thread
};

}  // namespace flash_llm
