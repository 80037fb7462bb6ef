// Which missing groups are read in one request, and what lies between them with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "io/group_file.hpp"
#include "io/slab.hpp"

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

// The same as runs into slot_of(group); what lies between goes to Slab::kDiscard.
template <typename SlotOf>
std::vector<Run> planned_runs(int section, const std::vector<std::int64_t>& groups, SlotOf slot_of,
                              const ReadCosts& costs) {
  std::vector<Run> runs;
  for (const PlannedRead& read : plan_reads(groups, costs)) {
    Run run{section, groups[read.begin], {}};
    run.slots.reserve(static_cast<std::size_t>(groups[read.end - 1] - groups[read.begin] + 1));
    for (std::size_t i = read.begin; i < read.end; ++i) {
      run.slots.resize(static_cast<std::size_t>(groups[i] - groups[read.begin]), Slab::kDiscard);
      run.slots.push_back(slot_of(groups[i]));
    }
    runs.push_back(std::move(run));
  }
  return runs;
}

}  // namespace flash_llm
