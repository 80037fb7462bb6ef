// Bundles in DRAM that are computed on together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "math/kernels.hpp"

namespace flash_llm {

// Bundles of a section's groups that lie in DRAM, in the order of the file; each has a place in the
// batch, from 0 on, and a number in its section. Keeps its memory when it is cleared.
class Batch {
 public:
  // Of the bundles' rows.
  RowFormat format{};
  // The flash is slower than computing: waking other threads for it would only take the processor
  // from those that read.
  bool waited_for = false;

  std::int64_t size() const { return size_; }
  std::size_t bytes() const {
    return parts_.capacity() * sizeof(Part) + picks_.capacity() * sizeof(std::int64_t);
  }

  // Begins another one, of a section with rows of this format.
  void clear(const RowFormat& rows) {
    format = rows;
    parts_.clear();
    picks_.clear();
    size_ = 0;
    waited_for = false;
  }
  // The first `count` bundles of a group, whose first one has this number.
  void add(const std::uint8_t* group, std::int64_t first_number, std::int64_t count) {
    parts_.push_back({group, first_number, size_, count, -1});
    size_ += count;
  }
  // Those among them whose flag is not 0.
  void add_flagged(const std::uint8_t* group, std::int64_t first_number, std::int64_t count,
                   const std::uint8_t* flags) {
    const std::int64_t first_pick = static_cast<std::int64_t>(picks_.size());
    for (std::int64_t i = 0; i < count; ++i) {
      if (flags[i]) {
        picks_.push_back(i);
      }
    }
    const std::int64_t picked = static_cast<std::int64_t>(picks_.size()) - first_pick;
    parts_.push_back({group, first_number, size_, picked, first_pick});
    size_ += picked;
  }

  std::int64_t number_at(std::int64_t place) const {
    std::int64_t number = 0;
    each(place, place + 1, 0,
         [&](std::int64_t, std::int64_t found, const std::uint8_t*) { number = found; });
    return number;
  }
  // The first place of a bundle with this number or a higher one.
  std::int64_t place_of(std::int64_t number) const {
    auto part = std::upper_bound(
        parts_.begin(), parts_.end(), number,
        [](std::int64_t wanted, const Part& p) { return wanted < p.first_number; });
    if (part == parts_.begin()) {
      return 0;
    }
    --part;
    const std::int64_t within = number - part->first_number;
    if (part->first_pick < 0) {
      return part->place + std::min(within, part->count);
    }
    const auto picks = picks_.begin() + part->first_pick;
    return part->place + (std::lower_bound(picks, picks + part->count, within) - picks);
  }

  // use(place, number, address) for the places from `first` to before `end`.
  template <typename Use>
  void each(std::int64_t first, std::int64_t end, std::size_t bundle_bytes, Use use) const {
    if (first >= end) {
      return;
    }
    auto part = std::upper_bound(parts_.begin(), parts_.end(), first,
                                 [](std::int64_t place, const Part& p) { return place < p.place; });
    --part;
    for (std::int64_t place = first; place < end; ++part) {
      const std::int64_t part_end = std::min(end, part->place + part->count);
      const auto use_within = [&](std::int64_t within) {
        use(place, part->first_number + within,
            part->group + static_cast<std::size_t>(within) * bundle_bytes);
      };
      if (part->first_pick < 0) {
        for (; place < part_end; ++place) {
          use_within(place - part->place);
        }
      } else {
        for (; place < part_end; ++place) {
          use_within(picks_[static_cast<std::size_t>(part->first_pick + place - part->place)]);
        }
      }
    }
  }

 private:
  struct Part {
    const std::uint8_t* group;
    std::int64_t first_number;
    std::int64_t place;  // of its first bundle
    std::int64_t count;
    std::int64_t first_pick;  // in picks_, -1: the group's first `count` bundles
  };

  std::vector<Part> parts_;
  std::vector<std::int64_t> picks_;  // numbers within their group
  std::int64_t size_ = 0;
};

}  // namespace flash_llm
