#include "window/read_plan.hpp"

#include <algorithm>
#include <deque>

namespace flash_llm {

// least[i] is the cost of the first i groups. A request for groups[i, j] adds costs.request +
// groups[j] + 1 - groups[i], so the best i for j is the one with the least least[i] - groups[i]
// among those near enough: a sliding minimum, linear in the number of groups.
std::vector<PlannedRead> plan_reads(const std::vector<std::int64_t>& groups,
                                    const ReadCosts& costs) {
  const std::size_t count = groups.size();
  std::vector<double> least(count + 1, 0.0);
  std::vector<std::size_t> begin_of(count);
  std::deque<std::size_t> begins;  // ascending, and so are their least[i] - position(i)
  const auto position = [&](std::size_t i) { return static_cast<double>(groups[i] - groups[0]); };
  const auto saved = [&](std::size_t i) { return least[i] - position(i); };
  for (std::size_t j = 0; j < count; ++j) {
    while (!begins.empty() && saved(begins.back()) >= saved(j)) {
      begins.pop_back();
    }
    begins.push_back(j);
    while (groups[j] - groups[begins.front()] >= static_cast<std::int64_t>(costs.largest)) {
      begins.pop_front();
    }
    begin_of[j] = begins.front();
    least[j + 1] = saved(begins.front()) + position(j) + 1 + costs.request;
  }
  std::vector<PlannedRead> reads;
  for (std::size_t end = count; end > 0; end = reads.back().begin) {
    reads.push_back({begin_of[end - 1], end});
  }
  std::reverse(reads.begin(), reads.end());
  return reads;
}

}  // namespace flash_llm
