// The table of contents of a neuron file.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "math/kernels.hpp"

namespace flash_llm {

// Consecutive groups of bundles; its first `pinned` groups live in slots from `pin_slot` on. A
// layer's experts are `copies` of it that begin `stride` groups apart.
struct Section {
  std::int64_t first_group;
  std::int64_t bundles;
  std::int64_t bundles_per_group;
  int rows;
  RowFormat format;
  std::int64_t pinned = 0;
  std::int32_t pin_slot = -1;
  std::int64_t copies = 1;
  std::int64_t stride = 0;

  std::int64_t groups() const { return (bundles + bundles_per_group - 1) / bundles_per_group; }
  std::int64_t bundles_in(std::int64_t local_group) const {
    return std::min(bundles_per_group, bundles - local_group * bundles_per_group);
  }
  // The groups, counted from the section's first, from `begin` on, that hold a flagged bundle.
  std::vector<std::int64_t> flagged_groups(const std::uint8_t* flags, std::int64_t begin) const {
    std::vector<std::int64_t> found;
    for (std::int64_t local = begin; local < groups(); ++local) {
      const std::uint8_t* const first = flags + local * bundles_per_group;
      if (std::any_of(first, first + bundles_in(local), [](std::uint8_t flag) { return flag; })) {
        found.push_back(local);
      }
    }
    return found;
  }
};

using Sections = std::vector<Section>;

}  // namespace flash_llm
