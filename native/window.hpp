// The cache slots: which group is where, and which one yields when another is needed.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "counters.hpp"
#include "read_plan.hpp"
#include "reader.hpp"

namespace flash_llm {

// Least recently used groups yield. All public calls come from the compute thread.
class Window {
 public:
  // `groups` of the file share `slots` slots of the slab, from `first_slot` on; reads are planned
  // by `costs`, which may change between calls.
  Window(Reader& reader, Counters& counters, const ReadCosts& costs, std::int64_t groups,
         std::int32_t first_slot, std::int32_t slots);
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
  // Starts reads of the absent ones among these ascending groups, as far as slots can be had
  // without waiting.
  void prefetch(int section, std::vector<std::int64_t> groups);

 private:
  enum class Status { kFree, kReading, kReady, kFailed };
  struct Entry {
    std::int64_t group = -1;
    Status status = Status::kFree;
    bool claimed = false;
    bool fresh = false;  // prefetched, not used yet
    std::int32_t older = -1;
    std::int32_t newer = -1;
    std::optional<ReadFault> fault;
  };

  Entry& at(std::int32_t index) { return entries_[static_cast<std::size_t>(index)]; }
  void unlink(std::int32_t index);
  void link_newest(std::int32_t index);
  void vacate(std::int32_t index);
  void occupy(std::int32_t index, std::int64_t group);
  void finish(const Run& run, const std::optional<ReadFault>& fault);
  void submit(Urgency urgency, int section, const std::vector<std::int64_t>& groups,
              const std::vector<std::int32_t>& entries);
  void touch_present(const std::vector<std::int64_t>& groups);

  Reader& reader_;
  Counters& counters_;
  const ReadCosts& costs_;
  const std::int32_t first_slot_;

  std::mutex mutex_;  // guards all below; reader threads report under it
  std::condition_variable arrived_;
  std::vector<std::int32_t> table_;  // file group -> entry, -1: absent
  std::vector<Entry> entries_;
  std::vector<std::int32_t> free_;
  std::int32_t oldest_ = -1;
  std::int32_t newest_ = -1;
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
