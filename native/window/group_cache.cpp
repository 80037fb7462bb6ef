#include "window/group_cache.hpp"

#include <algorithm>
#include <utility>

namespace flash_llm {
namespace {

constexpr std::size_t kFetchedTogether = 32;

}  // namespace

Window::Window(Reader& reader, Counters& counters, const ReadCosts& costs, std::int64_t groups,
               std::int32_t first_slot, std::int32_t slots, std::unique_ptr<WindowPolicy> policy)
    : reader_(reader),
      counters_(counters),
      costs_(costs),
      first_slot_(first_slot),
      table_(groups, slots, std::move(policy)),
      entries_(static_cast<std::size_t>(slots)) {}

Window::~Window() {
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [&] { return reading_ == 0; });
}

std::vector<std::int32_t> Window::claim(int section, const std::vector<std::int64_t>& groups) {
  std::vector<std::int32_t> claimed;
  std::vector<std::int64_t> missing;
  std::vector<std::int32_t> missing_entries;
  std::size_t late = 0;
  const Stopwatch claiming(counters_.claim_ns);
  std::unique_lock lock(mutex_);
  table_.turn(section);
  // Those that are here first, so that they do not yield to the others.
  for (const std::int64_t group : groups) {
    const std::int32_t index = table_.find(group);
    if (index >= 0) {
      table_.claim(index);
      at(index).claimed = true;
      add(counters_.prefetch_used, at(index).fresh);
      at(index).fresh = false;
      late += at(index).fetched;
      at(index).fetched = false;
    }
  }
  settle(section);
  for (const std::int64_t group : groups) {
    std::int32_t index = table_.find(group);
    if (index < 0) {
      while ((index = table_.admit(group)) < 0) {
        make_room(lock);
      }
      begin_reading(index, false);
      at(index).claimed = true;
      missing.push_back(group);
      missing_entries.push_back(index);
    }
    claimed.push_back(first_slot_ + index);
  }
  add(counters_.hits, groups.size() - missing.size() - late);
  add(counters_.misses, missing.size() + late);
  submit(Urgency::kDemand, section, missing, missing_entries);
  return claimed;
}

bool Window::ready(std::int32_t slot) {
  const std::lock_guard lock(mutex_);
  return at(slot - first_slot_).status != Status::kReading;
}

void Window::wait(std::int32_t slot) {
  std::unique_lock lock(mutex_);
  const Entry& entry = at(slot - first_slot_);
  if (entry.status == Status::kReading) {
    const Stopwatch waiting(counters_.wait_ns);
    arrived_.wait(lock, [&] { return entry.status != Status::kReading; });
  }
  if (entry.status == Status::kFailed) {
    throw *entry.fault;
  }
}

void Window::release(const std::vector<std::int32_t>& slots) {
  const Stopwatch claiming(counters_.claim_ns);
  std::unique_lock lock(mutex_);
  for (const std::int32_t slot : slots) {
    const std::int32_t index = slot - first_slot_;
    // After a fault, slots are given back that nobody has waited for.
    arrived_.wait(lock, [&] { return at(index).status != Status::kReading; });
    at(index).claimed = false;
    if (at(index).status == Status::kFailed) {
      vacate(index);
    } else {
      table_.rest(index);
    }
  }
}

void Window::prefetch(int section, const std::vector<std::int64_t>& groups, bool needed) {
  std::vector<std::int64_t> missing;
  std::vector<std::int32_t> missing_entries;
  const std::lock_guard lock(mutex_);
  settle(section);
  for (const std::int64_t group : groups) {
    const std::int32_t index = table_.find(group);
    if (index >= 0) {
      table_.claim(index);
      table_.expect(index, section);
    }
  }
  for (const std::int64_t group : groups) {
    if (table_.find(group) >= 0) {
      continue;
    }
    const std::int32_t index = table_.admit(group);
    if (index < 0) {
      break;
    }
    begin_reading(index, !needed);
    at(index).fetched = needed;
    table_.expect(index, section);
    missing.push_back(group);
    missing_entries.push_back(index);
  }
  add(counters_.prefetched, needed ? 0 : missing.size());
  submit(needed ? Urgency::kDemand : Urgency::kPrefetch, section, missing, missing_entries);
}

std::vector<bool> Window::fetch(int section, const std::vector<std::int64_t>& groups,
                                Deadline deadline) {
  std::unique_lock lock(mutex_);
  settle(section);
  // Those that are here first, so that they do not yield to the others.
  for (const std::int64_t group : groups) {
    const std::int32_t index = table_.find(group);
    if (index >= 0) {
      table_.claim(index);
      table_.expect(index, section);
    }
  }
  std::vector<std::int32_t> fetched;
  std::vector<std::int64_t> some;
  const bool in_time = std::chrono::steady_clock::now() < deadline;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const std::int32_t index = in_time && table_.find(groups[i]) < 0 ? table_.admit(groups[i]) : -1;
    if (index >= 0) {
      begin_reading(index, false);
      at(index).claimed = at(index).fetched = true;
      table_.expect(index, section);
      fetched.push_back(index);
      some.push_back(groups[i]);
    }
    // Neighbours among a few are read together; a few come before those that matter less.
    if (some.size() == kFetchedTogether || (i + 1 == groups.size() && !some.empty())) {
      std::sort(some.begin(), some.end());
      std::vector<std::int32_t> entries;
      for (const std::int64_t group : some) {
        entries.push_back(table_.find(group));
      }
      submit(Urgency::kDemand, section, some, entries);
      some.clear();
    }
  }
  {
    const Stopwatch waiting(counters_.wait_ns);
    arrived_.wait_until(lock, deadline, [&] {
      return std::all_of(groups.begin(), groups.end(), [&](std::int64_t group) {
        const std::int32_t index = table_.find(group);
        return index < 0 || at(index).status != Status::kReading;
      });
    });
  }
  if (const std::optional<ReadFault> fault = end_fetch(fetched)) {
    throw *fault;
  }
  std::vector<bool> here;
  for (const std::int64_t group : groups) {
    const std::int32_t index = table_.find(group);
    here.push_back(index >= 0 && at(index).status == Status::kReady);
  }
  return here;
}

// Cancels what has not begun, lets go what has, and returns the fault of a read that failed.
std::optional<ReadFault> Window::end_fetch(const std::vector<std::int32_t>& fetched) {
  for (const Run& run : reader_.cancel(Urgency::kDemand)) {
    --reading_;
    counters_.reading.end(1);
    for (const std::int32_t slot : run.slots) {
      if (slot != Slab::kDiscard) {
        vacate(slot - first_slot_);
      }
    }
  }
  std::optional<ReadFault> fault;
  for (const std::int32_t index : fetched) {
    Entry& entry = at(index);
    if (!entry.claimed) {
      continue;  // cancelled
    }
    entry.claimed = false;
    entry.fetched = entry.status == Status::kReady;
    if (entry.status == Status::kFailed) {
      fault = entry.fault;
      vacate(index);
    }
  }
  return fault;
}

// All slots that are not claimed are expected: the one that has been longest has to yield.
void Window::make_room(std::unique_lock<std::mutex>& lock) {
  const std::int32_t index = table_.longest_expected();
  if (at(index).status == Status::kReading) {
    arrived_.wait(lock);
  } else {
    vacate(index);
  }
}

void Window::begin_reading(std::int32_t index, bool fresh) {
  at(index) = Entry{};
  at(index).status = Status::kReading;
  at(index).fresh = fresh;
}

void Window::settle(int section) {
  table_.settle(section,
                [this](std::int32_t index) { return at(index).status != Status::kReading; });
}

void Window::vacate(std::int32_t index) {
  table_.vacate(index);
  at(index) = Entry{};
}

void Window::submit(Urgency urgency, int section, const std::vector<std::int64_t>& groups,
                    const std::vector<std::int32_t>& entries) {
  std::vector<std::int32_t> slots = entries;
  for (std::int32_t& slot : slots) {
    slot += first_slot_;
  }
  std::size_t read = 0;
  for (Run& run : planned_runs(section, groups, slots, costs_)) {
    ++reading_;
    read += run.slots.size();
    counters_.reading.begin(1);
    reader_.submit(urgency, std::move(run),
                   [this](const Run& done, const std::optional<ReadFault>& fault) {
                     finish(done, fault);
                   });
  }
  add(counters_.gap_groups, read - groups.size());
}

void Window::finish(const Run& run, const std::optional<ReadFault>& fault) {
  const std::lock_guard lock(mutex_);
  for (const std::int32_t slot : run.slots) {
    if (slot == Slab::kDiscard) {
      continue;
    }
    const std::int32_t index = slot - first_slot_;
    Entry& entry = at(index);
    entry.status = fault ? Status::kFailed : Status::kReady;
    if (fault && entry.claimed) {
      entry.fault = fault;  // kept for whoever claimed it, and vacated on release
    } else if (fault) {
      vacate(index);
    }
  }
  --reading_;
  counters_.reading.end(1);
  // Under the lock: whoever waits may destroy this object next.
  arrived_.notify_all();
}

}  // namespace flash_llm
