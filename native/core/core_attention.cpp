// What is computed of a layer before its feed-forward block.
#include <algorithm>
#include <cmath>

#include "core/core.hpp"
#include "math/rms_norm.hpp"

namespace flash_llm {
namespace {

void add_to_rows(const std::vector<float>& bias, Outputs rows) {
  for (std::int64_t token = 0; !bias.empty() && token < rows.tokens; ++token) {
    float* const row = rows.row(token);
    for (std::size_t i = 0; i < bias.size(); ++i) {
      row[i] += bias[i];
    }
  }
}

// Each part of `width` values of a row is normed for itself.
void norm_parts(float* row, std::int64_t values, const std::vector<float>& weights, float eps) {
  const std::int64_t width = static_cast<std::int64_t>(weights.size());
  for (std::int64_t first = 0; width != 0 && first < values; first += width) {
    rms_norm(row + first, weights.data(), width, eps, row + first);
  }
}

}  // namespace

void NeuronCore::set_attention(const AttentionShape& shape, float eps) {
  const std::lock_guard turn(calls_);
  check_open();
  if (attention_) {
    throw ArgumentError("set_attention", "a second call", "called once");
  }
  const auto floats = [&](std::int64_t width) {
    return std::vector<float>(static_cast<std::size_t>(shape.most_tokens * width));
  };
  attention_ = std::make_unique<Attention>(
      Attention{{shape, math_.kernels(), math_.most_threads()}, eps, {}, floats(dim_),
                floats(shape.qkv_width()), floats(shape.query_width())});
}

int NeuronCore::add_attention(AttentionLayer layer) {
  const std::lock_guard turn(calls_);
  check_open();
  const AttentionShape& shape = found_attention().math.shape();
  const auto require_rows = [&](const char* name, int index, std::int64_t rows, std::int64_t dim) {
    const Section& section = find(index);
    require(section.rows == 1 && section.bundles == rows && section.format.dim == dim, name, index,
            "a section of " + std::to_string(rows) + " rows of " + std::to_string(dim) + " values");
  };
  require_rows("qkv", layer.qkv, shape.qkv_width(), dim_);
  require_rows("o", layer.o, dim_, shape.query_width());
  attention_->layers.push_back(std::move(layer));
  return static_cast<int>(attention_->layers.size()) - 1;
}

AttentionShape NeuronCore::attention_shape() {
  const std::lock_guard turn(calls_);
  return found_attention().math.shape();
}

Attention& NeuronCore::found_attention() {
  if (!attention_) {
    throw ArgumentError("set_attention", "no call", "called before attention is used");
  }
  return *attention_;
}

void NeuronCore::attention(int number, Inputs hidden, std::int64_t position, Outputs residual,
                           Outputs feed_forward_input) {
  const std::lock_guard turn(calls_);
  check_open();
  Attention& attention = found_attention();
  const AttentionShape& shape = attention.math.shape();
  require(number >= 0 && static_cast<std::size_t>(number) < attention.layers.size(), "layer", number,
          "one of the " + std::to_string(attention.layers.size()) + " that were added");
  require(hidden.tokens <= shape.most_tokens, "hidden", hidden.tokens,
          "at most " + std::to_string(shape.most_tokens) + " tokens");
  require(position >= 0 && position <= shape.context - hidden.tokens, "position", position,
          "such that " + std::to_string(hidden.tokens) + " tokens fit in the context of " +
              std::to_string(shape.context));
  const AttentionLayer& layer = attention.layers[static_cast<std::size_t>(number)];
  const std::int64_t tokens = hidden.tokens;
  const Outputs normed{attention.normed.data(), tokens, dim_};
  const Outputs qkv{attention.qkv.data(), tokens, shape.qkv_width()};
  const Outputs attended{attention.attended.data(), tokens, shape.query_width()};
  if (!layer.norm.empty()) {
    normalise(hidden, layer.norm.data(), normed);
  }
  dots(layer.qkv, layer.norm.empty() ? hidden : normed.read_only(), kPlainRows, qkv);
  add_to_rows(layer.qkv_bias, qkv);
  math_.pool().share(tokens, [&](std::int64_t token, int) {
    const std::int64_t keys = shape.kv_heads * shape.head_dim;
    norm_parts(qkv.row(token), shape.query_width(), layer.query_norm, attention.eps);
    norm_parts(qkv.row(token) + shape.query_width(), keys, layer.key_norm, attention.eps);
  }, layer.query_norm.empty());
  attention.math.attend(math_.pool(), layer.reach, layer.sinks, layer.cache, qkv, position,
                        attended);
  std::copy_n(hidden.data, tokens * dim_, residual.data);
  if (layer.output_norm.empty()) {
    dots(layer.o, attended.read_only(), kAddedRows, residual);
    add_to_rows(layer.o_bias, residual);
  } else {
    dots(layer.o, attended.read_only(), kPlainRows, normed);
    add_to_rows(layer.o_bias, normed);
    add_normed(normed.read_only(), layer.output_norm.data(), residual);
  }
  if (layer.feed_forward_norm.empty()) {
    std::copy_n(residual.data, tokens * dim_, feed_forward_input.data);
  } else {
    normalise(residual.read_only(), layer.feed_forward_norm.data(), feed_forward_input);
  }
}

void NeuronCore::attended(Outputs out) {
  const std::lock_guard turn(calls_);
  const Attention& attention = found_attention();
  const std::int64_t most = attention.math.shape().most_tokens;
  require(out.tokens <= most, "out", out.tokens, "at most " + std::to_string(most) + " tokens");
  std::copy_n(attention.attended.data(), out.tokens * attention.math.shape().query_width(),
              out.data);
}

void NeuronCore::add_rms_normed(Inputs x, const float* weights, Outputs out) {
  const std::lock_guard turn(calls_);
  const std::int64_t most = found_attention().math.shape().most_tokens;
  require(x.tokens <= most, "x", x.tokens, "at most " + std::to_string(most) + " tokens");
  add_normed(x, weights, out);
}

void NeuronCore::rms_normed(Inputs x, const float* weights, Outputs out) {
  const std::lock_guard turn(calls_);
  const float eps = found_attention().eps;
  for (std::int64_t token = 0; token < x.tokens; ++token) {
    rms_norm(x.row(token), weights, dim_, eps, out.row(token));
  }
}

void NeuronCore::normalise(Inputs x, const float* weights, Outputs out) {
  math_.pool().share(x.tokens, [&](std::int64_t token, int) {
    rms_norm(x.row(token), weights, dim_, attention_->eps, out.row(token));
  });
}

void NeuronCore::add_normed(Inputs x, const float* weights, Outputs out) {
  const Outputs normed{attention_->normed.data(), x.tokens, dim_};
  normalise(x, weights, normed);
  for (std::int64_t i = 0; i < x.tokens * dim_; ++i) {
    out.data[i] += normed.data[i];
  }
}

}  // namespace flash_llm
