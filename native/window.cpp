#include "window.hpp"

#include <utility>

namespace flash_llm {

Window::Window(Reader& reader, Counters& counters, const ReadCosts& costs, std::int64_t groups,
               std::int32_t first_slot, std::int32_t slots)
    : reader_(reader),
      counters_(counters),
      costs_(costs),
      first_slot_(first_slot),
      table_(static_cast<std::size_t>(groups), -1),
      entries_(static_cast<std::size_t>(slots)) {
  free_.reserve(entries_.size());
  for (std::int32_t index = slots; index-- > 0;) {
    free_.push_back(index);
  }
}

Window::~Window() {
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [&] { return reading_ == 0; });
}

std::vector<std::int32_t> Window::claim(int section, const std::vector<std::int64_t>& groups) {
  std::vector<std::int32_t> claimed;
  std::vector<std::int64_t> missing;
  std::vector<std::int32_t> missing_entries;
  const Stopwatch claiming(counters_.claim_ns);
  std::unique_lock lock(mutex_);
  touch_present(groups);
  for (const std::int64_t group : groups) {
    std::int32_t index = table_[static_cast<std::size_t>(group)];
    if (index < 0) {
      // The oldest cannot be one of these groups: they were touched, and there are enough slots.
      while (free_.empty() && at(oldest_).status == Status::kReading) {
        arrived_.wait(lock);
      }
      if (free_.empty()) {
        vacate(oldest_);
      }
      index = free_.back();
      free_.pop_back();
      occupy(index, group);
      missing.push_back(group);
      missing_entries.push_back(index);
    } else if (at(index).fresh) {
      at(index).fresh = false;
      add(counters_.prefetch_used, 1);
    }
    at(index).claimed = true;
    claimed.push_back(first_slot_ + index);
    unlink(index);
    link_newest(index);
  }
  add(counters_.hits, groups.size() - missing.size());
  add(counters_.misses, missing.size());
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
  const std::lock_guard lock(mutex_);
  for (const std::int32_t slot : slots) {
    Entry& entry = at(slot - first_slot_);
    entry.claimed = false;
    if (entry.status == Status::kFailed) {
      vacate(slot - first_slot_);
    }
  }
}

void Window::prefetch(int section, std::vector<std::int64_t> groups) {
  if (groups.size() > entries_.size()) {
    groups.resize(entries_.size());
  }
  std::vector<std::int64_t> missing;
  std::vector<std::int32_t> missing_entries;
  const std::lock_guard lock(mutex_);
  touch_present(groups);
  for (const std::int64_t group : groups) {
    std::int32_t index = table_[static_cast<std::size_t>(group)];
    if (index < 0) {
      if (free_.empty() && at(oldest_).status == Status::kReading) {
        break;
      }
      if (free_.empty()) {
        vacate(oldest_);
      }
      index = free_.back();
      free_.pop_back();
      occupy(index, group);
      at(index).fresh = true;
      missing.push_back(group);
      missing_entries.push_back(index);
    }
    unlink(index);
    link_newest(index);
  }
  add(counters_.prefetched, missing.size());
  submit(Urgency::kPrefetch, section, missing, missing_entries);
}

void Window::touch_present(const std::vector<std::int64_t>& groups) {
  for (const std::int64_t group : groups) {
    const std::int32_t index = table_[static_cast<std::size_t>(group)];
    if (index >= 0) {
      unlink(index);
      link_newest(index);
    }
  }
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

void Window::occupy(std::int32_t index, std::int64_t group) {
  Entry& entry = at(index);
  entry.group = group;
  entry.status = Status::kReading;
  table_[static_cast<std::size_t>(group)] = index;
  link_newest(index);
}

void Window::vacate(std::int32_t index) {
  unlink(index);
  table_[static_cast<std::size_t>(at(index).group)] = -1;
  at(index) = Entry{};
  free_.push_back(index);
}

void Window::unlink(std::int32_t index) {
  const Entry& entry = at(index);
  (entry.older >= 0 ? at(entry.older).newer : oldest_) = entry.newer;
  (entry.newer >= 0 ? at(entry.newer).older : newest_) = entry.older;
}

void Window::link_newest(std::int32_t index) {
  Entry& entry = at(index);
  entry.older = newest_;
  entry.newer = -1;
  (newest_ >= 0 ? at(newest_).newer : oldest_) = index;
  newest_ = index;
}

}  // namespace flash_llm
