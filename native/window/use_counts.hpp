// How often groups were used, older uses counting less, and entries ordered by it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "window/entry_lists.hpp"

namespace flash_llm {

// Uses per group of the file, in the cache or not; all are halved every `half_life` tokens.
class UseCounts {
 public:
  static constexpr int kMost = 255;

  UseCounts(std::int64_t groups, std::int64_t half_life)
      : counts_(static_cast<std::size_t>(groups)), half_life_(half_life) {}

  int of(std::int64_t group) const { return counts_[static_cast<std::size_t>(group)]; }
  int used(std::int64_t group) {
    std::uint8_t& count = counts_[static_cast<std::size_t>(group)];
    return count = static_cast<std::uint8_t>(std::min(count + 1, kMost));
  }
  // Returns whether the counts were halved.
  bool token() {
    if (++tokens_ % half_life_ != 0) {
      return false;
    }
    for (std::uint8_t& count : counts_) {
      count /= 2;
    }
    return true;
  }

 private:
  std::vector<std::uint8_t> counts_;
  const std::int64_t half_life_;
  std::int64_t tokens_ = 0;
};

// Entries by count; least() is the newest of those with the least count.
class CountOrder {
 public:
  explicit CountOrder(std::int32_t entries)
      : links_(entries), counts_(static_cast<std::size_t>(entries)) {}

  void add(std::int32_t entry, int count) {
    counts_[static_cast<std::size_t>(entry)] = static_cast<std::uint8_t>(count);
    links_.push_newest(list(count), entry);
    mark(count, true);
  }
  void take(std::int32_t entry) {
    const int count = counts_[static_cast<std::size_t>(entry)];
    links_.remove(list(count), entry);
    mark(count, !list(count).empty());
  }
  // -1 if there is none.
  std::int32_t least() const {
    const int count = least_count();
    return count < 0 ? -1 : lists_[static_cast<std::size_t>(count)].newest;
  }
  int least_count() const {
    for (std::size_t word = 0; word < marks_.size(); ++word) {
      if (marks_[word] != 0) {
        return static_cast<int>(64 * word) + __builtin_ctzll(marks_[word]);
      }
    }
    return -1;
  }
  // As UseCounts does it.
  void halve() {
    for (std::uint8_t& count : counts_) {
      count /= 2;
    }
    for (int count = 1; count <= UseCounts::kMost; ++count) {
      links_.append(list(count / 2), list(count));
      mark(count, !list(count).empty());
      mark(count / 2, !list(count / 2).empty());
    }
  }

 private:
  EntryList& list(int count) { return lists_[static_cast<std::size_t>(count)]; }
  void mark(int count, bool present) {
    std::uint64_t& word = marks_[static_cast<std::size_t>(count / 64)];
    const std::uint64_t bit = std::uint64_t{1} << (count % 64);
    word = present ? word | bit : word & ~bit;
  }

  EntryLinks links_;
  std::vector<std::uint8_t> counts_;
  std::array<EntryList, UseCounts::kMost + 1> lists_;
  std::array<std::uint64_t, (UseCounts::kMost + 1) / 64> marks_{};
};

}  // namespace flash_llm
