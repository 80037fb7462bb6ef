// How likely groups are to be needed at their section's next turn.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace flash_llm {

// Uses per group of the file, in the cache or not, each worth half after `half_life` tokens, as
// levels: a level is what one token without a use takes off.
class UseChances {
 public:
  static constexpr int kMostHalfLife = 16;  // tokens
  static constexpr int kHalvings = 6;       // below that, uses no longer count
  static constexpr int kMostLevels = kHalvings * kMostHalfLife + 1;

  UseChances(std::int64_t groups, int half_life)
      : uses_(static_cast<std::size_t>(groups)),
        half_life_(half_life),
        fading_(std::exp2(-1.0 / half_life)) {}
  static constexpr std::size_t bytes(std::size_t groups) { return groups * sizeof(Uses); }

  int levels() const { return kHalvings * half_life_ + 1; }
  int used(std::int64_t group) { return level_of(note(group, 1.0)); }
  int of(std::int64_t group) { return level_of(note(group, 0.0)); }
  void token() { ++now_; }
  std::int32_t now() const { return now_; }

 private:
  struct Uses {
    float weight = 0.0f;
    std::int32_t token = 0;
  };
  double note(std::int64_t group, double weight) {
    Uses& uses = uses_[static_cast<std::size_t>(group)];
    const std::int32_t age = now_ - uses.token;
    const double faded = age == 1 ? fading_ : std::pow(fading_, age);
    uses = {static_cast<float>(static_cast<double>(uses.weight) * faded + weight), now_};
    return static_cast<double>(uses.weight);
  }
  int level_of(double weight) const {
    const double share = std::max(weight * (1 - fading_), 1e-9);  // 1: used by every token
    const double below = std::floor(std::log2(share) * half_life_ + 0.5);
    return std::clamp(levels() - 1 + static_cast<int>(below), 0, levels() - 1);
  }

  std::vector<Uses> uses_;
  const int half_life_;
  const double fading_;
  std::int32_t now_ = 0;
};

}  // namespace flash_llm
