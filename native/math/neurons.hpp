// What a bundle's rows mean.
#pragma once

#include "math/activation.hpp"

namespace flash_llm {

// How a bundle makes its activation: act(x . gate) * (x . up) of its first two rows if it is gated,
// else act(x . up + bias) of its first; `bias`, one value for each number, may be null.
struct Neurons {
  int bundle_rows;
  bool gated;
  Activation activation;
  const float* bias = nullptr;
  float threshold = 0;  // the activation's
  bool added = false;   // to what is there, which is replaced otherwise

  int rows() const { return gated ? 2 : 1; }
};

// Bundles of one row, of which nothing but the dot product is wanted, or its sum with what is there.
constexpr Neurons kPlainRows{1, false, Activation::kNone};
constexpr Neurons kAddedRows{1, false, Activation::kNone, nullptr, 0, true};

}  // namespace flash_llm
