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

Outputs block_of(const Outputs& all, std::int64_t first) {
  return {all.row(first), std::min(kTokenBlock, all.tokens - first), all.stride};
}

PreparedInputs block_of(const PreparedInputs& all, std::int64_t first) {
  return {all.row(first), std::min(kTokenBlock, all.tokens - first), all.stride};
}

std::size_t lines(std::size_t bytes) { return (bytes + sizeof(CacheLine) - 1) / sizeof(CacheLine); }

template <typename Value>
std::size_t bytes_of(const std::vector<Value>& values) {
  return values.capacity() * sizeof(Value);
}

std::size_t tile_bytes(const RowFormat& format, std::size_t rows) {
  return rows * static_cast<std::size_t>(format.padded_dim()) * sizeof(float);
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
  const std::size_t halves = rows / 2;
  const std::size_t thirds = rows / 3;
  const auto packed_bytes = [&](std::size_t count) {
    return kernels.packed_bytes(format, static_cast<std::int64_t>(count));
  };
  unpacked_.resize(lines(std::max({tile_bytes(format, rows), packed_bytes(rows),
                                   packed_bytes(2 * thirds) + tile_bytes(format, thirds),
                                   packed_bytes(halves) + tile_bytes(format, halves)})));
  prepared_.resize(lines(kernels.prepared_bytes(format)));
  dots_.resize(rows * kTokenBlock);
  activations_.resize(rows * kTokenBlock);
}

std::size_t GroupMath::scratch_bytes() const {
  return bytes_of(rows_) + bytes_of(all_) + bytes_of(unpacked_) + bytes_of(prepared_) +
         bytes_of(dots_) + bytes_of(activations_);
}

PreparedInputs GroupMath::prepare(Inputs x) {
  const std::size_t stride = kernels_.prepared_bytes(format_);
  const std::size_t needed = lines(stride) * static_cast<std::size_t>(x.tokens);
  if (prepared_.size() < needed) {
    prepared_.resize(needed);
  }
  std::uint8_t* const data = prepared_.data()->bytes;
  for (std::int64_t token = 0; token < x.tokens; ++token) {
    kernels_.prepare(format_, x.row(token), data + static_cast<std::size_t>(token) * stride);
  }
  return {data, x.tokens, stride};
}

void GroupMath::rows_dot(const std::uint8_t* group, std::int64_t bundles, const PreparedInputs& x,
                         Outputs out) {
  list_rows(group, all_.data(), bundles, 1, 0, 1);
  if (x.tokens == 1) {
    kernels_.dot_rows(format_, rows_.data(), bundles, x.data, out.data);
    return;
  }
  std::uint8_t* const packed = unpacked_.data()->bytes;
  kernels_.pack_rows(format_, rows_.data(), bundles, packed);
  kernels_.packed_dot(format_, packed, bundles, x.data, x.tokens, out.data, out.stride);
}

void GroupMath::gate_up(const std::uint8_t* group, std::int64_t bundles,
                        const PreparedInputs& x, Activation activation, Outputs h) {
  const Neurons neurons{2, true, activation};
  if (x.tokens == 1) {
    activate_picked(group, all_.data(), bundles, x, neurons);
    std::copy_n(activations_.data(), bundles, h.data);
    return;
  }
  std::uint8_t* const packed = unpacked_.data()->bytes;
  list_rows(group, all_.data(), bundles, 2, 0, 2);
  kernels_.pack_rows(format_, rows_.data(), 2 * bundles, packed);
  for (std::int64_t first = 0; first < x.tokens; first += kTokenBlock) {
    activate_packed(packed, bundles, block_of(x, first), neurons, block_of(h, first));
  }
}

void GroupMath::add_rows(const std::uint8_t* group, std::int64_t bundles, Inputs h, Outputs out) {
  const Columns columns{0, format_.blocks()};
  list_rows(group, all_.data(), bundles, 1, 0, 1);
  if (h.tokens == 1) {
    kernels_.add_rows(format_, rows_.data(), h.data, bundles, columns, out.data);
    return;
  }
  float* const tile = reinterpret_cast<float*>(unpacked_.data());
  kernels_.decode_rows(format_, rows_.data(), bundles, columns, tile);
  kernels_.tile_add(format_, tile, bundles, columns, h.data, h.stride, h.tokens, out.data);
}

void GroupMath::bundled(const std::uint8_t* group, std::int64_t bundles,
                        const PreparedInputs& x, const Neurons& neurons, Outputs out) {
  const Columns columns{0, format_.blocks()};
  const int rows = neurons.bundle_rows;
  if (x.tokens == 1) {
    activate_picked(group, all_.data(), bundles, x, neurons);
    list_rows(group, all_.data(), bundles, rows, rows - 1, 1);
    kernels_.add_rows(format_, rows_.data(), activations_.data(), bundles, columns, out.data);
    return;
  }
  std::uint8_t* const packed = unpacked_.data()->bytes;
  float* const down_tile =
      reinterpret_cast<float*>(packed + kernels_.packed_bytes(format_, neurons.rows() * bundles));
  list_rows(group, all_.data(), bundles, rows, 0, neurons.rows());
  kernels_.pack_rows(format_, rows_.data(), neurons.rows() * bundles, packed);
  list_rows(group, all_.data(), bundles, rows, rows - 1, 1);
  kernels_.decode_rows(format_, rows_.data(), bundles, columns, down_tile);
  for (std::int64_t first = 0; first < x.tokens; first += kTokenBlock) {
    const PreparedInputs some = block_of(x, first);
    activate_packed(packed, bundles, some, neurons, {activations_.data(), some.tokens, bundles});
    kernels_.tile_add(format_, down_tile, bundles, columns, activations_.data(), bundles,
                      some.tokens, out.row(first));
  }
}

void GroupMath::add_picked_rows(const std::uint8_t* group, const Picked& picked, const float* h,
                                float* out) {
  const std::int64_t count = static_cast<std::int64_t>(picked.size());
  list_rows(group, picked.data(), count, 1, 0, 1);
  for (std::int64_t i = 0; i < count; ++i) {
    activations_[static_cast<std::size_t>(i)] = h[picked[static_cast<std::size_t>(i)]];
  }
  kernels_.add_rows(format_, rows_.data(), activations_.data(), count, {0, format_.blocks()},
                    out);
}

void GroupMath::bundled_picked(const std::uint8_t* group, const Picked& picked,
                               const PreparedInputs& x, const Neurons& neurons, float* out,
                               float* h_out) {
  const std::int64_t count = static_cast<std::int64_t>(picked.size());
  const int rows = neurons.bundle_rows;
  activate_picked(group, picked.data(), count, x, neurons);
  list_rows(group, picked.data(), count, rows, rows - 1, 1);
  kernels_.add_rows(format_, rows_.data(), activations_.data(), count, {0, format_.blocks()},
                    out);
  if (h_out != nullptr) {
    for (std::size_t i = 0; i < picked.size(); ++i) {
      h_out[picked[i]] = activations_[i];
    }
  }
}

void GroupMath::decode_row(const std::uint8_t* group, std::int64_t bundle, float* out) {
  list_rows(group, &bundle, 1, 1, 0, 1);
  float* const tile = reinterpret_cast<float*>(unpacked_.data());
  kernels_.decode_rows(format_, rows_.data(), 1, {0, format_.blocks()}, tile);
  std::copy_n(tile, format_.dim, out);
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
                                std::int64_t count, const PreparedInputs& x,
                                const Neurons& neurons) {
  list_rows(group, picked, count, neurons.bundle_rows, 0, neurons.rows());
  kernels_.dot_rows(format_, rows_.data(), neurons.rows() * count, x.data, dots_.data());
  combine(dots_.data(), picked, count, neurons, activations_.data());
}

// Some tokens' activations of all `count` bundles, whose rows before the down row are packed.
void GroupMath::activate_packed(const std::uint8_t* packed, std::int64_t count,
                                const PreparedInputs& x, const Neurons& neurons, Outputs h) {
  const std::int64_t rows = neurons.rows() * count;
  kernels_.packed_dot(format_, packed, rows, x.data, x.tokens, dots_.data(), rows);
  for (std::int64_t token = 0; token < x.tokens; ++token) {
    combine(dots_.data() + token * rows, all_.data(), count, neurons, h.row(token));
  }
}

}  // namespace flash_llm
