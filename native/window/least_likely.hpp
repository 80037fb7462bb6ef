// Which of the idle cache entries yields when another group needs a place.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "window/entry_lists.hpp"
#include "window/use_chances.hpp"

namespace flash_llm {

// The group that is least likely to be needed at its section's next turn. Among equals the newest:
// its section's next turn is the furthest away.
//
// Sees the idle entries only: what is claimed, expected or being read is never among them, so that
// it cannot yield. Every call takes constant time and allocates nothing.
class LeastLikely {
 public:
  // Idle entries are in lists of `links`, which others use for those that are not idle.
  // `half_life`: of a use, in tokens.
  LeastLikely(std::int64_t groups, std::int32_t entries, int half_life, EntryLinks& links);
  static constexpr std::size_t bytes(std::size_t groups, std::size_t entries) {
    return UseChances::bytes(groups) + entries * sizeof(Place);
  }

  // `entry`, which holds `group`, is idle from now on; `used`: a computation has just used it,
  // otherwise it was only predicted.
  void add(std::int32_t entry, std::int64_t group, bool used);
  // An idle entry is needed.
  void take(std::int32_t entry);
  // Takes the idle entry that should yield; -1 if none is idle.
  std::int32_t victim();
  // Another token begins.
  void token();

 private:
  struct Place {
    std::int32_t token = 0;  // when it became idle
    std::int32_t level = 0;  // then
  };
  using Lists = std::array<EntryList, UseChances::kMostLevels>;
  // Entries by the level they have now.
  struct Levels {
    Lists lists;
    int least = 0;  // no entry is on a lower one
    EntryList& at(int level) { return lists[static_cast<std::size_t>(level)]; }
    // `levels` where all lists are empty.
    int find_least(int levels);
  };

  UseChances chances_;
  EntryLinks& links_;
  std::vector<Place> places_;
  Levels before_;   // idle since an earlier token
  Levels current_;  // since this one
};

}  // namespace flash_llm
