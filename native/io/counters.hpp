// What happened since the core was made; read from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace flash_llm {

// The time during which something is under way, however much of it at once.
class BusyClock {
 public:
  void begin(std::size_t count) {
    const std::lock_guard lock(mutex_);
    if (under_way_ == 0) {
      since_ = std::chrono::steady_clock::now();
    }
    under_way_ += count;
  }
  void end(std::size_t count) {
    const std::lock_guard lock(mutex_);
    under_way_ -= count;
    if (under_way_ == 0 && count > 0) {
      before_ += std::chrono::steady_clock::now() - since_;
    }
  }
  std::uint64_t nanoseconds() const {
    const std::lock_guard lock(mutex_);
    auto total = before_;
    if (under_way_ > 0) {
      total += std::chrono::steady_clock::now() - since_;
    }
    return static_cast<std::uint64_t>(std::chrono::nanoseconds(total).count());
  }

 private:
  mutable std::mutex mutex_;
  std::size_t under_way_ = 0;
  std::chrono::steady_clock::duration before_{0};
  std::chrono::steady_clock::time_point since_;
};

struct Counters {
  using Counter = std::atomic<std::uint64_t>;
  Counter flash_bytes{0};    // delivered by the device, repeated reads included
  Counter flash_reads{0};    // read requests, repeated ones included
  Counter gap_groups{0};     // groups read along with missing ones and thrown away
  Counter retries{0};        // requests that were repeated
  Counter crc_checked{0};    // groups whose checksum was computed
  Counter hits{0};           // groups used that were pinned or cached
  Counter misses{0};         // groups used that had to be read for it
  Counter prefetched{0};     // groups that prefetch asked the device for
  Counter prefetch_used{0};  // of those, groups that were then used: neither hits nor misses
  BusyClock reading;         // from the first wanted read to the last arrival
  Counter wait_ns{0};        // computing stood still, because its groups had not arrived
  Counter claim_ns{0};       // finding slots (or waiting for one), letting groups go, queueing reads
};

inline void add(Counters::Counter& counter, std::uint64_t amount) {
  counter.fetch_add(amount, std::memory_order_relaxed);
}

// Adds the time it lives to a counter.
class Stopwatch {
 public:
  explicit Stopwatch(Counters::Counter& counter) : counter_(counter) {}
  ~Stopwatch() {
    const auto time = std::chrono::steady_clock::now() - begin_;
    add(counter_, static_cast<std::uint64_t>(std::chrono::nanoseconds(time).count()));
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  Counters::Counter& counter_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace flash_llm
