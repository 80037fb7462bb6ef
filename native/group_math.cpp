#include "group_math.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "errors.hpp"

namespace flash_llm {
namespace {

// Tokens whose intermediate results are held at a time.
constexpr std::int64_t kTokenBlock = 16;

float activated(float z, Activation activation) {
  if (activation == Activation::kRelu) {
    return z > 0 ? z : 0;
  }
  return z / (1 + std::exp(-z));
}

// h[i] = the activation of bundle picked[i], whose dots are dots[rows * i] and the next.
void combine(const float* dots, const std::int64_t* picked, std::int64_t count,
             const Neurons& neurons, float* h) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (neurons.gated) {
      h[i] = activated(dots[2 * i], neurons.activation) * dots[2 * i + 1];
    } else {
      const float bias = neurons.bias == nullptr ? 0 : neurons.bias[picked[i]];
      h[i] = activated(dots[i] + bias, neurons.activation);
    }
  }
}

template <typename Float>
TokenRows<Float> block_of(TokenRows<Float> all, std::int64_t first) {
  return {all.row(first), std::min(kTokenBlock, all.tokens - first), all.stride};
}

}  // namespace

Activation activation_of(const std::string& name) {
  if (name != "silu" && name != "relu") {
    throw ArgumentError("activation", "'" + name + "'", "'silu' or 'relu'");
  }
  return name == "silu" ? Activation::kSilu : Activation::kRelu;
}

GroupMath::GroupMath(const RowFormat& format, const Kernels& kernels, std::size_t group_bytes)
    : format_(format), kernels_(kernels) {
  const std::size_t rows = std::max<std::size_t>(1, group_bytes / format.row_bytes());
  rows_.resize(rows);
  all_.resize(rows);
  std::iota(all_.begin(), all_.end(), 0);
  tile_.resize(rows * static_cast<std::size_t>(format.padded_dim()));
  dots_.resize(rows * kTokenBlock);
  activations_.resize(rows * kTokenBlock);
}

std::size_t GroupMath::scratch_bytes() const {
  return rows_.size() * sizeof rows_[0] + all_.size() * sizeof all_[0] +
         (tile_.size() + dots_.size() + activations_.size()) * sizeof(float);
}

void GroupMath::rows_dot(const std::uint8_t* group, std::int64_t bundles, Inputs x, Outputs out) {
  list_rows(group, all_.data(), bundles, 1, 0, 1);
  if (x.tokens == 1) {
    kernels_.dot_rows(format_, rows_.data(), bundles, x.data, out.data);
    return;
  }
  kernels_.decode_rows(format_, rows_.data(), bundles, tile_.data());
  kernels_.tile_dot(format_, tile_.data(), bundles, x.data, x.tokens, out.data, out.stride);
}

void GroupMath::gate_up(const std::uint8_t* group, std::int64_t bundles, Inputs x,
                        Activation activation, Outputs h) {
  const Neurons neurons{2, true, activation};
  if (x.tokens == 1) {
    activate_picked(group, all_.data(), bundles, x.data, neurons);
    std::copy_n(activations_.data(), bundles, h.data);
    return;
  }
  list_rows(group, all_.data(), bundles, 2, 0, 2);
  kernels_.decode_rows(format_, rows_.data(), 2 * bundles, tile_.data());
  for (std::int64_t first = 0; first < x.tokens; first += kTokenBlock) {
    activate_tile(bundles, block_of(x, first), neurons, block_of(h, first));
  }
}

void GroupMath::add_rows(const std::uint8_t* group, std::int64_t bundles, Inputs h, Outputs out) {
  list_rows(group, all_.data(), bundles, 1, 0, 1);
  if (h.tokens == 1) {
    kernels_.add_rows(format_, rows_.data(), h.data, bundles, out.data);
    return;
  }
  kernels_.decode_rows(format_, rows_.data(), bundles, tile_.data());
  kernels_.tile_add(format_, tile_.data(), bundles, h.data, h.stride, h.tokens, out.data);
}

void GroupMath::bundled(const std::uint8_t* group, std::int64_t bundles, Inputs x,
                        const Neurons& neurons, Outputs out) {
  const int rows = neurons.bundle_rows;
  if (x.tokens == 1) {
    activate_picked(group, all_.data(), bundles, x.data, neurons);
    list_rows(group, all_.data(), bundles, rows, rows - 1, 1);
    kernels_.add_rows(format_, rows_.data(), activations_.data(), bundles, out.data);
    return;
  }
  float* const down_tile = tile_.data() + neurons.rows() * bundles * format_.padded_dim();
  list_rows(group, all_.data(), bundles, rows, 0, neurons.rows());
  kernels_.decode_rows(format_, rows_.data(), neurons.rows() * bundles, tile_.data());
  list_rows(group, all_.data(), bundles, rows, rows - 1, 1);
  kernels_.decode_rows(format_, rows_.data(), bundles, down_tile);
  for (std::int64_t first = 0; first < x.tokens; first += kTokenBlock) {
    const Inputs some = block_of(x, first);
    activate_tile(bundles, some, neurons, {activations_.data(), some.tokens, bundles});
    kernels_.tile_add(format_, down_tile, bundles, activations_.data(), bundles, some.tokens,
                      out.row(first));
  }
}

void GroupMath::add_picked_rows(const std::uint8_t* group, const Picked& picked, const float* h,
                                float* out) {
  const std::int64_t count = static_cast<std::int64_t>(picked.size());
  list_rows(group, picked.data(), count, 1, 0, 1);
  for (std::int64_t i = 0; i < count; ++i) {
    activations_[static_cast<std::size_t>(i)] = h[picked[static_cast<std::size_t>(i)]];
  }
  kernels_.add_rows(format_, rows_.data(), activations_.data(), count, out);
}

void GroupMath::bundled_picked(const std::uint8_t* group, const Picked& picked, const float* x,
                               const Neurons& neurons, float* out, float* h_out) {
  const std::int64_t count = static_cast<std::int64_t>(picked.size());
  const int rows = neurons.bundle_rows;
  activate_picked(group, picked.data(), count, x, neurons);
  list_rows(group, picked.data(), count, rows, rows - 1, 1);
  kernels_.add_rows(format_, rows_.data(), activations_.data(), count, out);
  if (h_out != nullptr) {
    for (std::size_t i = 0; i < picked.size(); ++i) {
      h_out[picked[i]] = activations_[i];
    }
  }
}

void GroupMath::decode_row(const std::uint8_t* group, std::int64_t bundle, float* out) {
  list_rows(group, &bundle, 1, 1, 0, 1);
  kernels_.decode_rows(format_, rows_.data(), 1, tile_.data());
  std::copy_n(tile_.data(), format_.dim, out);
}

void GroupMath::list_rows(const std::uint8_t* group, const std::int64_t* picked,
                          std::int64_t count, int bundle_rows, int first, int rows) {
  const std::size_t row_bytes = format_.row_bytes();
  auto next = rows_.begin();
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint8_t* row =
        group + static_cast<std::size_t>(picked[i] * bundle_rows + first) * row_bytes;
    for (int r = 0; r < rows; ++r) {
      *next++ = row;
      row += row_bytes;
    }
  }
}

// One token's activations of the picked bundles, into activations_.
void GroupMath::activate_picked(const std::uint8_t* group, const std::int64_t* picked,
                                std::int64_t count, const float* x, const Neurons& neurons) {
  list_rows(group, picked, count, neurons.bundle_rows, 0, neurons.rows());
  kernels_.dot_rows(format_, rows_.data(), neurons.rows() * count, x, dots_.data());
  combine(dots_.data(), picked, count, neurons, activations_.data());
}

// Some tokens' activations of all `count` bundles, whose rows before the down row are in tile_.
void GroupMath::activate_tile(std::int64_t count, Inputs x, const Neurons& neurons, Outputs h) {
  const std::int64_t rows = neurons.rows() * count;
  kernels_.tile_dot(format_, tile_.data(), rows, x.data, x.tokens, dots_.data(), rows);
  for (std::int64_t token = 0; token < x.tokens; ++token) {
    combine(dots_.data() + token * rows, all_.data(), count, neurons, h.row(token));
  }
}

}  // namespace flash_llm
