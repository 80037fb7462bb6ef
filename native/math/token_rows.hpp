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

// Some tokens' x in the form that dot products take: of one token by itself, of several in tiles.
struct PreparedInputs {
  const std::uint8_t* data;
  std::int64_t tokens;
  std::size_t tile_bytes;

  const std::uint8_t* tile(std::int64_t number) const {
    return data + static_cast<std::size_t>(number) * tile_bytes;
  }
};

}  // namespace flash_llm
