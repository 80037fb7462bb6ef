#include "math/bundle_math.hpp"

#include <algorithm>
#include <cstring>

namespace flash_llm {
namespace {

constexpr std::int64_t kStepBytes = 32 * 1024;
constexpr std::int64_t kRowsAtOnce = 32;  // what kernels for several tokens like to have
constexpr std::int64_t kMostStepRows = 512;
constexpr std::int64_t kListedRows = 256;  // of one token's rows, which need no room of their own

template <typename Value>
std::size_t bytes_of(const std::vector<Value>& values) {
  return values.capacity() * sizeof(Value);
}

template <typename Value>
void grow(std::vector<Value>& values, std::size_t size) {
  values.resize(std::max(values.size(), size));
}

}  // namespace

std::int64_t BundleMath::step_rows(const RowFormat& format) {
  const std::int64_t rows = kStepBytes / static_cast<std::int64_t>(format.row_bytes());
  return std::clamp(rows / kRowsAtOnce * kRowsAtOnce, kRowsAtOnce, kMostStepRows);
}

void BundleMath::fit(const RowFormat& format, int bundle_rows) {
  const std::int64_t step = step_rows(format);
  const std::size_t rows = static_cast<std::size_t>(step);
  // Rows that are added are decoded a step at a time, others one by one.
  const std::size_t decoded = (bundle_rows == 1 ? 1 : rows) * sizeof(float) *
                              static_cast<std::size_t>(format.padded_dim());
  const std::size_t listed = static_cast<std::size_t>(std::max(step, kListedRows));
  grow(rows_, listed);
  grow(biases_, listed);
  grow(dots_, std::max(listed, rows * kDotTokens));
  grow(gates_, dots_.size() / 2);
  grow(unpacked_, cache_lines(std::max(decoded, kernels_.packed_bytes(format, step))));
}

std::size_t BundleMath::scratch_bytes() const {
  return bytes_of(rows_) + bytes_of(biases_) + bytes_of(dots_) + bytes_of(gates_) +
         bytes_of(unpacked_);
}

void BundleMath::activate(const Batch& batch, std::int64_t first, std::int64_t end,
                          const Neurons& neurons, const PreparedInputs& x, Outputs h) {
  const RowFormat& format = batch.format;
  const std::int64_t listed =
      x.tokens == 1 ? static_cast<std::int64_t>(rows_.size()) : step_rows(format);
  const std::int64_t step = listed / neurons.rows();
  std::uint8_t* const packed = unpacked_.data()->bytes;
  for (std::int64_t place = first; place < end; place += step) {
    const std::int64_t count = std::min(step, end - place);
    const std::int64_t rows = count * neurons.rows();
    list_rows(batch, place, place + count, neurons.bundle_rows, 0, neurons.rows());
    list_biases(batch, place, place + count, neurons);
    if (!x.few()) {
      kernels_.pack_rows(format, rows_.data(), rows, packed);
    }
    for (std::int64_t token = 0; token < x.tokens; token += kDotTokens) {
      const std::int64_t tokens = std::min(kDotTokens, x.tokens - token);
      if (x.few()) {
        kernels_.dot_rows(format, rows_.data(), rows, x.at(token), tokens, dots_.data());
      } else {
        kernels_.packed_dot(format, packed, rows, x.at(token / kDotTokens), tokens, dots_.data(),
                            rows);
      }
      add_row_biases(format, rows, tokens);
      combine(count, neurons, {h.row(token) + place, tokens, h.stride});
    }
  }
}

void BundleMath::add_last_rows(const Batch& batch, std::int64_t first, std::int64_t end,
                               int bundle_rows, const float* h, float* out) {
  const std::int64_t step = static_cast<std::int64_t>(rows_.size());
  for (std::int64_t place = first; place < end; place += step) {
    const std::int64_t count = std::min(step, end - place);
    list_rows(batch, place, place + count, bundle_rows, bundle_rows - 1, 1);
    kernels_.add_rows(batch.format, rows_.data(), h + place, count, {0, batch.format.blocks()}, out);
  }
}

void BundleMath::add_last_rows(const Batch& batch, int bundle_rows, Columns columns, Inputs h,
                               Outputs out) {
  const RowFormat& format = batch.format;
  const std::int64_t step = step_rows(format);
  float* const tile = reinterpret_cast<float*>(unpacked_.data());
  for (std::int64_t place = 0; place < batch.size(); place += step) {
    const std::int64_t count = std::min(step, batch.size() - place);
    list_rows(batch, place, place + count, bundle_rows, bundle_rows - 1, 1);
    kernels_.decode_rows(format, rows_.data(), count, columns, tile);
    kernels_.tile_add(format, tile, count, columns, h.data + place, h.stride, h.tokens, out.data);
  }
}

void BundleMath::decode_row(const RowFormat& format, const std::uint8_t* row, float* out) {
  float* const tile = reinterpret_cast<float*>(unpacked_.data());
  kernels_.decode_rows(format, &row, 1, {0, format.blocks()}, tile);
  std::copy_n(tile, format.dim, out);
}

void BundleMath::list_rows(const Batch& batch, std::int64_t first, std::int64_t end,
                           int bundle_rows, int row, int rows) {
  const std::size_t row_bytes = batch.format.row_bytes();
  auto next = rows_.begin();
  batch.each(first, end, static_cast<std::size_t>(bundle_rows) * row_bytes,
             [&](std::int64_t, std::int64_t, const std::uint8_t* bundle) {
               for (int r = row; r < row + rows; ++r) {
                 *next++ = bundle + static_cast<std::size_t>(r) * row_bytes;
               }
             });
}

void BundleMath::list_biases(const Batch& batch, std::int64_t first, std::int64_t end,
                             const Neurons& neurons) {
  if (neurons.bias == nullptr) {
    return;
  }
  batch.each(first, end, 0, [&](std::int64_t place, std::int64_t number, const std::uint8_t*) {
    biases_[static_cast<std::size_t>(place - first)] = neurons.bias[number];
  });
}

void BundleMath::add_row_biases(const RowFormat& format, std::int64_t rows, std::int64_t tokens) {
  for (std::int64_t i = 0; format.biased && i < rows; ++i) {
    float bias;
    std::memcpy(&bias, rows_[static_cast<std::size_t>(i)] + format.values_bytes(), sizeof bias);
    for (std::int64_t t = 0; t < tokens; ++t) {
      dots_[static_cast<std::size_t>(t * rows + i)] += bias;
    }
  }
}

// h [tokens, count] from the dot products of each bundle's rows.
void BundleMath::combine(std::int64_t count, const Neurons& neurons, Outputs h) {
  const std::int64_t all = h.tokens * count;
  float* const dots = dots_.data();
  float* const activated = neurons.gated ? gates_.data() : dots;
  const bool clamped = neurons.gated && neurons.activation == Activation::kClampedSwiglu;
  for (std::int64_t i = 0; clamped && i < all; ++i) {
    float& up = dots[2 * i + 1];
    up = 1 + (up > kSwigluLimit ? kSwigluLimit : up < -kSwigluLimit ? -kSwigluLimit : up);
  }
  for (std::int64_t i = 0; neurons.gated && i < all; ++i) {
    activated[i] = dots[2 * i];
  }
  for (std::int64_t i = 0; neurons.bias != nullptr && i < all; ++i) {
    activated[i] += biases_[static_cast<std::size_t>(i % count)];
  }
  kernels_.activate(neurons.activation, neurons.threshold, activated, all);
  for (std::int64_t t = 0; t < h.tokens; ++t) {
    const float* const from = activated + t * count;
    const float* const pairs = dots + 2 * t * count;
    float* const to = h.row(t);
    if (neurons.gated) {
      for (std::int64_t i = 0; i < count; ++i) {
        to[i] = from[i] * pairs[2 * i + 1];
      }
    } else if (neurons.added) {
      for (std::int64_t i = 0; i < count; ++i) {
        to[i] += from[i];
      }
    } else {
      std::copy_n(from, count, to);
    }
  }
}

}  // namespace flash_llm
