// The cache slots: single groups, read when they are needed or expected.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "io/counters.hpp"
#include "io/reader.hpp"
#include "window/read_plan.hpp"
#include "window/slot_table.hpp"

namespace flash_llm {

// All public calls come from the compute thread. A std::bad_alloc leaves everything as usable as
// a read that failed.
class GroupCache {
 public:
  // `groups` of the file share `slots` slots of the slab, from `first_slot` on. Reads are planned
  // by `costs`, which may change between calls. A use counts half after `half_life` tokens.
  GroupCache(Reader& reader, Counters& counters, const ReadCosts& costs, std::int64_t groups,
             std::int32_t first_slot, std::int32_t slots, int half_life);
  ~GroupCache();
  GroupCache(const GroupCache&) = delete;
  GroupCache& operator=(const GroupCache&) = delete;
  // What such a cache allocates beside the slab as long as it lives.
  static constexpr std::size_t bookkeeping_bytes(std::size_t groups, std::size_t slots) {
    return SlotTable::bytes(groups, slots) + slots * sizeof(Entry);
  }

  std::size_t size() const { return entries_.size(); }

  // Claims a slot for each of these ascending groups, at most size(), and starts the missing reads.
  // The slots stay theirs until release(), which comes before the next claim.
  std::vector<std::int32_t> claim(int section, const std::vector<std::int64_t>& groups);
  // Whether wait() would return at once.
  bool ready(std::int32_t slot);
  // Waits until a claimed slot holds its group; ReadFault if the read failed. To be called for the
  // slots in their order: what is thrown is the fault of the first group that failed.
  void wait(std::int32_t slot);
  // Ends the latest claim.
  void release(const std::vector<std::int32_t>& slots);
  // Starts reads of the absent ones among these ascending groups, as far as idle slots are left.
  // None of them yields before the section is claimed or prefetched for again. `needed`: the
  // section's next claim is for these, so they are as urgent, and misses to it.
  void prefetch(int section, const std::vector<std::int64_t>& groups, bool needed);

 private:
  enum class Status : std::uint8_t { kReading, kReady, kFailed };
  struct Entry {
    Status status = Status::kReady;
    bool fresh = false;   // prefetched, not used yet
    bool needed = false;  // read for the section's next claim, to which it is a miss
  };

  Entry& at(std::int32_t index) { return entries_[static_cast<std::size_t>(index)]; }
  void make_room(std::unique_lock<std::mutex>& lock);
  void settle(int section);
  void vacate(std::int32_t index);
  void submit(Urgency urgency, int section, const std::vector<std::int64_t>& groups);
  void finish(const Run& run, const std::optional<ReadFault>& fault);
  void fail(std::int32_t index);

  Reader& reader_;
  Counters& counters_;
  const ReadCosts& costs_;
  const std::int32_t first_slot_;

  std::mutex mutex_;  // guards all below; reader threads report under it
  std::condition_variable arrived_;
  SlotTable table_;
  std::vector<Entry> entries_;
  std::size_t reading_ = 0;  // requests
  // Of the first group of the latest claim that failed; none where no memory was left to ask for it.
  std::optional<ReadFault> fault_;
  std::int64_t failed_group_ = 0;
};

// Slots of the cache that stay claimed while this lives.
class Claim {
 public:
  Claim(GroupCache* cache, int section, const std::vector<std::int64_t>& groups) : cache_(cache) {
    if (!groups.empty()) {
      slots_ = cache->claim(section, groups);
    }
  }
  ~Claim() {
    if (!slots_.empty()) {
      cache_->release(slots_);
    }
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

  bool ready(std::size_t index) const { return cache_->ready(slots_[index]); }
  std::int32_t wait(std::size_t index) const {
    cache_->wait(slots_[index]);
    return slots_[index];
  }

 private:
  GroupCache* cache_;
  std::vector<std::int32_t> slots_;
};

}  // namespace flash_llm
