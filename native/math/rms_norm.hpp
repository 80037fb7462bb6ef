// The norm before attention, the feed-forward block and the output head.
#pragma once

#include <cmath>
#include <cstdint>

namespace flash_llm {

// out [dim] = x / root of its mean square * weights; `eps` is added to the mean. The same bytes on
// every processor: squares are summed in sixteen lanes.
inline void rms_norm(const float* x, const float* weights, std::int64_t dim, float eps, float* out) {
  constexpr std::int64_t kLanes = 16;
  float sums[kLanes] = {};
  const std::int64_t whole = dim / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      sums[lane] += x[i + lane] * x[i + lane];
    }
  }
  for (std::int64_t i = whole; i < dim; ++i) {
    sums[i - whole] += x[i] * x[i];
  }
  for (std::int64_t apart = kLanes / 2; apart > 0; apart /= 2) {
    for (std::int64_t lane = 0; lane < apart; ++lane) {
      sums[lane] += sums[lane + apart];
    }
  }
  const float scale = 1 / std::sqrt(sums[0] / static_cast<float>(dim) + eps);
  for (std::int64_t i = 0; i < dim; ++i) {
    out[i] = x[i] * scale * weights[i];
  }
}

}  // namespace flash_llm
