// Which group is in which entry of the cache, and which one yields. Knows no reads and no locks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "window/entry_lists.hpp"
#include "window/least_likely.hpp"

namespace flash_llm {

// An entry is free; claimed (a computation uses it); expected (prefetched for a section whose turn
// has not come, so that nothing that is needed earlier may push it out); or idle, which is when it
// may have to yield. Constant time but for settle(), and no allocation after the constructor.
class SlotTable {
 public:
  // `half_life`: of a use, in tokens.
  SlotTable(std::int64_t groups, std::int32_t entries, int half_life);
  SlotTable(const SlotTable&) = delete;
  SlotTable& operator=(const SlotTable&) = delete;
  // What the constructor allocates.
  static constexpr std::size_t bytes(std::size_t groups, std::size_t entries) {
    return groups * sizeof(std::int32_t) + entries * sizeof(Entry) + EntryLinks::bytes(entries) +
           LeastLikely::bytes(groups, entries);
  }

  std::size_t size() const { return entries_.size(); }
  // The entry of a group, -1 if it has none.
  std::int32_t find(std::int64_t group) const { return table_[static_cast<std::size_t>(group)]; }
  bool claimed(std::int32_t index) const { return at(index).place == Place::kClaimed; }

  // Sections are claimed in the same order for every token; the first one again is the next token.
  void turn(int section);
  // Claims an entry that is idle or expected.
  void claim(std::int32_t index);
  // Claims an entry for an absent group, if one is free or idle; -1 otherwise.
  std::int32_t admit(std::int64_t group);
  // Claimed entries become idle, expected, or free.
  void rest(std::int32_t index);
  void expect(std::int32_t index, int section);
  void vacate(std::int32_t index);
  // The entry that has been expected longest, -1 if there is none.
  std::int32_t longest_expected() const { return expected_.oldest; }

  // Entries that were expected for this section become idle, those but that are not `ready(index)`.
  template <typename Ready>
  void settle(int section, Ready ready) {
    for (std::int32_t index = expected_.oldest; index >= 0;) {
      const std::int32_t next = links_.newer(index);
      if (at(index).section == section && ready(index)) {
        links_.remove(expected_, index);
        idle(index, false);
      }
      index = next;
    }
  }

 private:
  enum class Place : std::uint8_t { kFree, kClaimed, kExpected, kIdle };
  struct Entry {
    std::int32_t group = -1;
    std::int32_t section = -1;  // that expects it
    Place place = Place::kFree;
  };

  Entry& at(std::int32_t index) { return entries_[static_cast<std::size_t>(index)]; }
  const Entry& at(std::int32_t index) const { return entries_[static_cast<std::size_t>(index)]; }
  void idle(std::int32_t index, bool used);

  std::vector<std::int32_t> table_;  // file group -> entry, -1: absent
  std::vector<Entry> entries_;
  EntryLinks links_;  // of entries that are not claimed
  EntryList free_;
  EntryList expected_;
  LeastLikely idle_;
  int last_section_ = -1;
};

}  // namespace flash_llm
