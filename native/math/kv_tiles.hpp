// How keys and values lie in memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flash_llm {

constexpr std::int64_t kTileTokens = 32;
constexpr std::int64_t kKeyBlock = 32;          // values of a key that share a scale
constexpr std::int64_t kSegmentTokens = 256;    // whose attention is computed at a time

// The largest factor of a query or of a value's weight. Products of 32 of them with as many keys or
// values fit in 32 bits.
constexpr float kFactorLevels = 16383;

// Keys and values of 32 consecutive tokens and one head, as integers of 8 or 16 bits times scales:
// keys [head_dim / 2][32 tokens][2], values [blocks of 32][16 pairs of tokens][32][2] with zeros
// behind head_dim, scales of keys [blocks][32 tokens], of values [32 tokens]. A scale is the upper
// half of a float32. So one instruction multiplies pairs for many tokens, or for many outputs.
struct KvTiles {
  int bits;
  std::int64_t head_dim;

  std::int64_t blocks() const { return (head_dim + kKeyBlock - 1) / kKeyBlock; }
  std::int64_t padded_dim() const { return blocks() * kKeyBlock; }
  float levels() const { return bits == 8 ? 127 : 4095; }
  std::size_t values_at() const { return part(kTileTokens * head_dim * bits / 8); }
  std::size_t key_scales_at() const {
    return values_at() + part(kTileTokens * padded_dim() * bits / 8);
  }
  std::size_t value_scales_at() const { return key_scales_at() + part(blocks() * kTileTokens * 2); }
  std::size_t bytes() const { return value_scales_at() + part(kTileTokens * 2); }

 private:
  static std::size_t part(std::int64_t bytes) {
    return (static_cast<std::size_t>(bytes) + 63) / 64 * 64;
  }
};

// Queries of some tokens and the heads that share keys, in the form that dot products take.
struct Queries {
  const std::int16_t* steps;  // [count, head_dim]
  const float* scales;        // [count, blocks of 32]
  std::int64_t count;
  std::int64_t heads;         // of each token, which follow each other
  std::int64_t position;      // of the first query's token: it sees the tokens up to itself
  std::int64_t window;        // how many of these at most; 0: all
  float soft_cap;             // scores are cap * tanh(score / cap); 0: as they are

  std::int64_t end(std::int64_t query) const { return position + query / heads + 1; }
  std::int64_t begin(std::int64_t query) const {
    return window == 0 || window > end(query) ? 0 : end(query) - window;
  }
};

// What a query has attended to so far: float [padded head_dim] of weighted values, the largest score
// and the sum of weights, which are relative to it.
struct AttendedRow {
  static std::int64_t stride(const KvTiles& tiles) { return tiles.padded_dim() + 16; }
  float* data;
  std::int64_t padded_dim;

  float& peak() const { return data[padded_dim]; }
  float& total() const { return data[padded_dim + 1]; }
};

}  // namespace flash_llm
