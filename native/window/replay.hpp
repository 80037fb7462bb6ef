// A recorded sequence of claims and prefetches run through the cache's bookkeeping, without reads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace flash_llm {

// What a computation used, or what was predicted to be used, of a section: groups, ascending.
struct ReplayEvent {
  int section;
  bool predicted;
  const std::int64_t* groups;
  std::int64_t count;
};

struct ReplayCounts {
  std::uint64_t hits = 0;
  std::uint64_t misses = 0;
  std::uint64_t prefetched = 0;
};

// Reads are instant. `groups` are below `file_groups`; ArgumentError if a use has more groups than
// there are slots, or if there is no such policy.
ReplayCounts replay(const std::string& policy, std::int64_t file_groups, std::int32_t slots,
                    const std::vector<ReplayEvent>& events);

// The most hits that any policy can reach, predictions left out, if it knows what is to come
// (Belady: the group that is needed again last yields).
std::uint64_t most_hits(std::int64_t file_groups, std::int32_t slots,
                        const std::vector<ReplayEvent>& events);

}  // namespace flash_llm
