// The vectors of some tokens, one row for each.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flash_llm {

// float [tokens, stride of them], read or written.
template <typename Float>
struct TokenRows {
  Float* data;
  std::int64_t tokens;
  std::int64_t stride;

  Float* row(std::int64_t token) const { return data + token * stride; }
  TokenRows<const Float> read_only() const { return {data, tokens, stride}; }
  TokenRows columns_from(std::int64_t column) const { return {data + column, tokens, stride}; }
};
using Inputs = TokenRows<const float>;
using Outputs = TokenRows<float>;

// What a vector of bytes is made of when it starts on a boundary of 64.
struct alignas(64) CacheLine {
  std::uint8_t bytes[64];
};

constexpr std::size_t cache_lines(std::size_t bytes) {
  return (bytes + sizeof(CacheLine) - 1) / sizeof(CacheLine);
}

// Packing rows for several tokens takes as long as the dot products of about so many with rows as they
// are.
constexpr std::int64_t kTokensAlone = 12;

// Some tokens' x in the form that dot products take: of few each token by itself, of more in tiles.
struct PreparedInputs {
  const std::uint8_t* data;
  std::int64_t tokens;
  std::size_t each_bytes;

  bool few() const { return tokens <= kTokensAlone; }
  // Of a token, or a tile.
  const std::uint8_t* at(std::int64_t number) const {
    return data + static_cast<std::size_t>(number) * each_bytes;
  }
};

}  // namespace flash_llm
