#include "window/replay.hpp"

#include <limits>
#include <queue>
#include <utility>

#include "errors.hpp"
#include "window/slot_table.hpp"

namespace flash_llm {
namespace {

bool arrived(std::int32_t) { return true; }

// The steps of Window::claim() and release().
void use(SlotTable& table, const ReplayEvent& event, ReplayCounts& counts) {
  const std::int64_t* const end = event.groups + event.count;
  table.turn(event.section);
  for (const std::int64_t* group = event.groups; group != end; ++group) {
    const std::int32_t index = table.find(*group);
    if (index >= 0) {
      table.claim(index);
      ++counts.hits;
    }
  }
  table.settle(event.section, arrived);
  for (const std::int64_t* group = event.groups; group != end; ++group) {
    if (table.find(*group) < 0) {
      while (table.admit(*group) < 0) {
        table.vacate(table.longest_expected());
      }
      ++counts.misses;
    }
  }
  for (const std::int64_t* group = event.groups; group != end; ++group) {
    table.rest(table.find(*group));
  }
}

// The steps of Window::prefetch().
void prefetch(SlotTable& table, const ReplayEvent& event, ReplayCounts& counts) {
  const std::int64_t* const end = event.groups + event.count;
  table.settle(event.section, arrived);
  for (const std::int64_t* group = event.groups; group != end; ++group) {
    const std::int32_t index = table.find(*group);
    if (index >= 0) {
      table.claim(index);
      table.expect(index, event.section);
    }
  }
  for (const std::int64_t* group = event.groups; group != end; ++group) {
    if (table.find(*group) < 0) {
      const std::int32_t index = table.admit(*group);
      if (index < 0) {
        break;
      }
      table.expect(index, event.section);
      ++counts.prefetched;
    }
  }
}

}  // namespace

ReplayCounts replay(const std::string& policy, std::int64_t file_groups, std::int32_t slots,
                    const std::vector<ReplayEvent>& events) {
  SlotTable table(file_groups, slots, make_policy(policy, slots, file_groups));
  ReplayCounts counts;
  for (const ReplayEvent& event : events) {
    if (event.count == 0) {
      continue;  // which the core does not bother the window with
    }
    if (event.predicted) {
      prefetch(table, event, counts);
    } else {
      require(event.count <= slots, "slots", slots,
              "at least " + std::to_string(event.count) + ", as many as an event uses");
      use(table, event, counts);
    }
  }
  return counts;
}

std::uint64_t most_hits(std::int64_t file_groups, std::int32_t slots,
                        const std::vector<ReplayEvent>& events) {
  std::vector<std::int64_t> uses;
  for (const ReplayEvent& event : events) {
    if (!event.predicted) {
      uses.insert(uses.end(), event.groups, event.groups + event.count);
    }
  }
  constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
  std::vector<std::int64_t> next(uses.size());
  std::vector<std::int64_t> upcoming(static_cast<std::size_t>(file_groups), kNever);
  for (std::size_t i = uses.size(); i-- > 0;) {
    next[i] = std::exchange(upcoming[static_cast<std::size_t>(uses[i])],
                            static_cast<std::int64_t>(i));
  }
  // (next use, group); entries whose next use is not the group's current one are out of date.
  std::priority_queue<std::pair<std::int64_t, std::int64_t>> latest;
  std::vector<std::int64_t> due(static_cast<std::size_t>(file_groups), -1);  // -1: absent
  std::uint64_t hits = 0;
  std::int32_t present = 0;
  for (std::size_t i = 0; i < uses.size(); ++i) {
    std::int64_t& current = due[static_cast<std::size_t>(uses[i])];
    if (current >= 0) {
      ++hits;
    } else if (present < slots) {
      ++present;
    } else {
      while (latest.top().first != due[static_cast<std::size_t>(latest.top().second)]) {
        latest.pop();
      }
      due[static_cast<std::size_t>(latest.top().second)] = -1;
      latest.pop();
    }
    current = next[i];
    latest.emplace(next[i], uses[i]);
  }
  return hits;
}

}  // namespace flash_llm
