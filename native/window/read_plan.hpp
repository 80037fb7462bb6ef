// Which missing groups are read in one request, and what lies between them with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "io/group_file.hpp"

namespace flash_llm {

// What reading costs, in units of what one more group costs a request.
struct ReadCosts {
  double request = 0.5;       // of a request, besides its groups; by default no gap is worth reading
  std::size_t largest = 1;    // groups of one request, gaps included
};

// A request for groups[begin, end) and all that lies between them.
struct PlannedRead {
  std::size_t begin;
  std::size_t end;
};

// The cheapest way to read these ascending groups: the sum of `costs.request` + groups read over
// all requests is least. Where two ways cost the same, less is read.
std::vector<PlannedRead> plan_reads(const std::vector<std::int64_t>& groups,
                                    const ReadCosts& costs);

// The same as runs into slots, which go with `groups`; what lies between goes to Slab::kDiscard.
std::vector<Run> planned_runs(int section, const std::vector<std::int64_t>& groups,
                              const std::vector<std::int32_t>& slots, const ReadCosts& costs);

}  // namespace flash_llm
