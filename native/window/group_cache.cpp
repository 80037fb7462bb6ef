#include "window/group_cache.hpp"

#include <new>
#include <utility>

namespace flash_llm {

GroupCache::GroupCache(Reader& reader, Counters& counters, const ReadCosts& costs,
                       std::int64_t groups, std::int32_t first_slot, std::int32_t slots,
                       int half_life)
    : reader_(reader),
      counters_(counters),
      costs_(costs),
      first_slot_(first_slot),
      table_(groups, slots, half_life),
      entries_(static_cast<std::size_t>(slots)) {}

GroupCache::~GroupCache() {
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [&] { return reading_ == 0; });
}

std::vector<std::int32_t> GroupCache::claim(int section, const std::vector<std::int64_t>& groups) {
  std::vector<std::int32_t> claimed;
  std::vector<std::int64_t> missing;
  claimed.reserve(groups.size());
  missing.reserve(groups.size());
  std::size_t late = 0;
  std::size_t foreseen = 0;
  const Stopwatch claiming(counters_.claim_ns);
  std::unique_lock lock(mutex_);
  fault_.reset();
  table_.turn(section);
  // Those that are here first, so that they do not yield to the others.
  for (const std::int64_t group : groups) {
    const std::int32_t index = table_.find(group);
    if (index >= 0) {
      Entry& entry = at(index);
      table_.claim(index);
      foreseen += entry.fresh;
      late += entry.needed;
      entry.fresh = entry.needed = false;
    }
  }
  settle(section);
  for (const std::int64_t group : groups) {
    std::int32_t index = table_.find(group);
    if (index < 0) {
      while ((index = table_.admit(group)) < 0) {
        make_room(lock);
      }
      at(index) = {Status::kReading, false, false};
      missing.push_back(group);
    }
    claimed.push_back(first_slot_ + index);
  }
  add(counters_.hits, groups.size() - missing.size() - late - foreseen);
  add(counters_.prefetch_used, foreseen);
  add(counters_.misses, missing.size() + late);
  submit(Urgency::kDemand, section, missing);
  return claimed;
}

bool GroupCache::ready(std::int32_t slot) {
  const std::lock_guard lock(mutex_);
  return at(slot - first_slot_).status != Status::kReading;
}

void GroupCache::wait(std::int32_t slot) {
  std::unique_lock lock(mutex_);
  const Entry& entry = at(slot - first_slot_);
  if (entry.status == Status::kReading) {
    const Stopwatch waiting(counters_.wait_ns);
    arrived_.wait(lock, [&] { return entry.status != Status::kReading; });
  }
  if (entry.status == Status::kFailed) {
    if (fault_) {
      throw *fault_;
    }
    throw std::bad_alloc();
  }
}

void GroupCache::release(const std::vector<std::int32_t>& slots) {
  const Stopwatch claiming(counters_.claim_ns);
  std::unique_lock lock(mutex_);
  for (const std::int32_t slot : slots) {
    const std::int32_t index = slot - first_slot_;
    // After a fault, slots are given back that nobody has waited for.
    arrived_.wait(lock, [&] { return at(index).status != Status::kReading; });
    if (at(index).status == Status::kFailed) {
      vacate(index);
    } else {
      table_.rest(index);
    }
  }
}

void GroupCache::prefetch(int section, const std::vector<std::int64_t>& groups, bool needed) {
  std::vector<std::int64_t> missing;
  missing.reserve(groups.size());
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
    at(index) = {Status::kReading, !needed, needed};
    table_.expect(index, section);
    missing.push_back(group);
  }
  add(counters_.prefetched, needed ? 0 : missing.size());
  submit(needed ? Urgency::kDemand : Urgency::kPrefetch, section, missing);
}

// All slots that are not claimed are expected: the one that has been longest has to yield.
void GroupCache::make_room(std::unique_lock<std::mutex>& lock) {
  const std::int32_t index = table_.longest_expected();
  if (at(index).status == Status::kReading) {
    arrived_.wait(lock);
  } else {
    vacate(index);
  }
}

void GroupCache::settle(int section) {
  table_.settle(section,
                [this](std::int32_t index) { return at(index).status != Status::kReading; });
}

void GroupCache::vacate(std::int32_t index) {
  table_.vacate(index);
  at(index) = Entry{};
}

// The entries of these groups are being read from now on, or have failed where no memory is left.
void GroupCache::submit(Urgency urgency, int section, const std::vector<std::int64_t>& groups) {
  std::int64_t begun = 0;  // all groups before this one
  try {
    const auto slot_of = [this](std::int64_t group) { return first_slot_ + table_.find(group); };
    std::size_t read = 0;
    for (Run& run : planned_runs(section, groups, slot_of, costs_)) {
      const std::int64_t end = run.end_group();
      read += run.slots.size();
      reader_.submit(urgency, std::move(run),
                     [this](const Run& done, const std::optional<ReadFault>& fault) {
                       finish(done, fault);
                     });
      begun = end;
      ++reading_;
      counters_.reading.begin(1);
    }
    add(counters_.gap_groups, read - groups.size());
  } catch (const std::bad_alloc&) {
    for (const std::int64_t group : groups) {
      if (group >= begun) {
        fail(table_.find(group));
      }
    }
  }
}

void GroupCache::finish(const Run& run, const std::optional<ReadFault>& fault) {
  const std::lock_guard lock(mutex_);
  std::int64_t group = run.first_group;
  for (const std::int32_t slot : run.slots) {
    if (slot != Slab::kDiscard) {
      const std::int32_t index = slot - first_slot_;
      at(index).status = Status::kReady;
      if (fault) {
        if (table_.claimed(index) && (!fault_ || group < failed_group_)) {
          fault_ = fault;
          failed_group_ = group;
        }
        fail(index);
      }
    }
    ++group;
  }
  --reading_;
  counters_.reading.end(1);
  // Under the lock: whoever waits may destroy this object next.
  arrived_.notify_all();
}

// Whoever claimed it is told, and vacates it on release.
void GroupCache::fail(std::int32_t index) {
  if (table_.claimed(index)) {
    at(index).status = Status::kFailed;
  } else {
    vacate(index);
  }
}

}  // namespace flash_llm
