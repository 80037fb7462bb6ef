// What is around the attention of a layer.
#pragma once

#include <cstdint>
#include <vector>

#include "math/attention_math.hpp"
#include "math/token_rows.hpp"

namespace flash_llm {

// A layer before its feed-forward block; norms and biases may be empty. The cache is the caller's.
struct AttentionLayer {
  int qkv;  // sections
  int o;
  LayerReach reach;
  std::vector<float> norm;
  std::vector<float> query_norm;  // of each head, or of all together
  std::vector<float> key_norm;
  std::vector<float> output_norm;
  std::vector<float> feed_forward_norm;
  std::vector<float> qkv_bias;
  std::vector<float> o_bias;
  std::vector<float> sinks;  // of heads, see AttentionMath::attend
  std::uint8_t* cache;
};

// The attention of a model and what its steps hand on.
struct Attention {
  AttentionMath math;
  float eps;
  std::vector<AttentionLayer> layers;
  std::vector<float> normed;  // [tokens, dim]
  std::vector<float> qkv;     // [tokens, qkv width]
  std::vector<float> attended;  // [tokens, query width]

  // What this takes beside layers, of a model with rows of `dim` values.
  static std::size_t bytes(const AttentionShape& shape, std::int64_t dim, int threads) {
    const std::int64_t floats = shape.most_tokens * (dim + shape.qkv_width() + shape.query_width());
    return AttentionRoom(shape).bytes(threads) + static_cast<std::size_t>(floats) * sizeof(float);
  }
};

}  // namespace flash_llm
