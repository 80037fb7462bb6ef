// The cache slots: single groups, read when they are needed or expected.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "io/counters.hpp"
#include "io/reader.hpp"
#include "window/read_plan.hpp"
#include "window/slot_table.hpp"

namespace flash_llm {

using Deadline = std::chrono::steady_clock::time_point;

// All public calls come from the compute thread.
class Window {
 public:
  // `groups` of the file share `slots` slots of the slab, from `first_slot` on; the policy says
  // which of them yield. Reads are planned by `costs`, which may change between calls.
  Window(Reader& reader, Counters& counters, const ReadCosts& costs, std::int64_t groups,
         std::int32_t first_slot, std::int32_t slots, std::unique_ptr<WindowPolicy> policy);
  ~Window();
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;

  std::size_t size() const { return entries_.size(); }

  // Claims a slot for each of these ascending groups, at most size(), and starts the missing reads.
  // The slots stay theirs until release().
  std::vector<std::int32_t> claim(int section, const std::vector<std::int64_t>& groups);
  // Whether wait() would return at once.
  bool ready(std::int32_t slot);
  // Waits until a claimed slot holds its group; ReadFault if the read failed.
  void wait(std::int32_t slot);
  // Ends the latest claim.
  void release(const std::vector<std::int32_t>& slots);
  // Reads the absent ones among these groups, earlier ones of the list first, as far as idle slots
  // are left and the time allows; what has not begun by then is not read. Returns which of them are
  // here now: they stay, uncounted, until the section is claimed. ReadFault if a read failed.
  std::vector<bool> fetch(int section, const std::vector<std::int64_t>& groups, Deadline deadline);
  // Starts reads of the absent ones among these ascending groups, as far as idle slots are left.
  // None of them yields before the section is claimed or prefetched for again. `needed`: the
  // section's next claim is for these, so they are as urgent, and misses to it.
  void prefetch(int section, const std::vector<std::int64_t>& groups, bool needed);

 private:
  enum class Status : std::uint8_t { kReading, kReady, kFailed };
  struct Entry {
    Status status = Status::kReady;
    bool claimed = false;
    bool fresh = false;  // prefetched, not used yet
    bool fetched = false;  // read for the section's next claim, to which it is a miss
    std::optional<ReadFault> fault;
  };

  Entry& at(std::int32_t index) { return entries_[static_cast<std::size_t>(index)]; }
  void make_room(std::unique_lock<std::mutex>& lock);
  void begin_reading(std::int32_t index, bool fresh);
  void settle(int section);
  std::optional<ReadFault> end_fetch(const std::vector<std::int32_t>& fetched);
  void vacate(std::int32_t index);
  void finish(const Run& run, const std::optional<ReadFault>& fault);
  void submit(Urgency urgency, int section, const std::vector<std::int64_t>& groups,
              const std::vector<std::int32_t>& entries);

  Reader& reader_;
  Counters& counters_;
  const ReadCosts& costs_;
  const std::int32_t first_slot_;

  std::mutex mutex_;  // guards all below; reader threads report under it
  std::condition_variable arrived_;
  SlotTable table_;
  std::vector<Entry> entries_;
  std::size_t reading_ = 0;  // requests
};

// Slots of the window that stay claimed while this lives.
class Claim {
 public:
  Claim(Window* window, int section, const std::vector<std::int64_t>& groups) : window_(window) {
    if (!groups.empty()) {
      slots_ = window->claim(section, groups);
    }
  }
  ~Claim() {
    if (!slots_.empty()) {
      window_->release(slots_);
    }
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

  bool ready(std::size_t index) const { return window_->ready(slots_[index]); }
  std::int32_t wait(std::size_t index) const {
    window_->wait(slots_[index]);
    return slots_[index];
  }

 private:
  Window* window_;
  std::vector<std::int32_t> slots_;
};

}  // namespace flash_llm
