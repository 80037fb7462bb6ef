// What is computed from one group of bundles, for one token or many.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace flash_llm {

enum class Activation { kSilu, kRelu };

// ArgumentError for any other name than 'silu' and 'relu'.
Activation activation_of(const std::string& name);

// float [tokens, stride of them], read or written.
template <typename Float>
struct TokenRows {
  Float* data;
  std::int64_t tokens;
  std::int64_t stride;

  Float* row(std::int64_t token) const { return data + token * stride; }
  TokenRows columns_from(std::int64_t column) const { return {data + column, tokens, stride}; }
};
using Inputs = TokenRows<const float>;
using Outputs = TokenRows<float>;

// How a bundle makes its activation: act(x . gate) * (x . up) of its first two rows if it is gated,
// else act(x . up + bias) of its first; `bias`, one value a bundle, may be null.
struct Neurons {
  int bundle_rows;
  bool gated;
  Activation activation;
  const float* bias = nullptr;

  int rows() const { return gated ? 2 : 1; }
  Neurons from(std::int64_t bundle) const {
    return {bundle_rows, gated, activation, bias == nullptr ? nullptr : bias + bundle};
  }
};

// What a vector of bytes is made of when it starts on a boundary of 64.
struct alignas(64) CacheLine {
  std::uint8_t bytes[64];
};

// Some tokens' x in the form that dot products take.
struct PreparedInputs {
  const std::uint8_t* data;
  std::int64_t tokens;
  std::size_t stride;  // bytes

  const std::uint8_t* row(std::int64_t token) const {
    return data + static_cast<std::size_t>(token) * stride;
  }
};

// Bundles of a group by number, ascending.
using Picked = std::vector<std::int64_t>;

// Owns the scratch memory; one thread at a time. `group` is where the group lies in DRAM, `bundles`
// how many it holds. One token is computed on the encoded rows, several on rows decoded once.
class GroupMath {
 public:
  GroupMath(const RowFormat& format, const Kernels& kernels, std::size_t group_bytes);

  const char* kernels_name() const { return kernels_.name; }
  std::size_t scratch_bytes() const;

  // Once per section; valid until the next call.
  PreparedInputs prepare(Inputs x);

  // out = x . rows, bundles of one row.
  void rows_dot(const std::uint8_t* group, std::int64_t bundles, const PreparedInputs& x,
                Outputs out);
  // h = act(x . gate) * (x . up), bundles of two rows.
  void gate_up(const std::uint8_t* group, std::int64_t bundles, const PreparedInputs& x,
               Activation activation, Outputs h);
  // out += h * rows, bundles of one row.
  void add_rows(const std::uint8_t* group, std::int64_t bundles, Inputs h, Outputs out);
  // out += the activations * down, the last row of each bundle.
  void bundled(const std::uint8_t* group, std::int64_t bundles, const PreparedInputs& x,
               const Neurons& neurons, Outputs out);

  // The same over some bundles, for one token; h [bundles of the group].
  void add_picked_rows(const std::uint8_t* group, const Picked& picked, const float* h, float* out);
  // `h_out`, unless null, gets the activations at the picked places.
  void bundled_picked(const std::uint8_t* group, const Picked& picked, const PreparedInputs& x,
                      const Neurons& neurons, float* out, float* h_out);

  // out [dim] = the only row of a bundle.
  void decode_row(const std::uint8_t* group, std::int64_t bundle, float* out);

 private:
  // Rows `first` to `first + rows` of each of `count` bundles of `bundle_rows` rows, into rows_.
  void list_rows(const std::uint8_t* group, const std::int64_t* picked, std::int64_t count,
                 int bundle_rows, int first, int rows);
  void activate_picked(const std::uint8_t* group, const std::int64_t* picked, std::int64_t count,
                       const PreparedInputs& x, const Neurons& neurons);
  void activate_packed(const std::uint8_t* packed, std::int64_t count, const PreparedInputs& x,
                       const Neurons& neurons, Outputs h);

  RowFormat format_;
  const Kernels& kernels_;
  std::vector<const std::uint8_t*> rows_;
  std::vector<std::int64_t> all_;   // 0, 1, 2, ...: every bundle picked
  std::vector<CacheLine> prepared_;
  std::vector<CacheLine> unpacked_; // rows packed or decoded for several tokens
  std::vector<float> dots_;         // of some tokens with a group's rows
  std::vector<float> activations_;  // of some tokens
};

}  // namespace flash_llm
