// What happened since the core was made; read from any thread.
#pragma once

#include <atomic>
#include <cstdint>

namespace flash_llm {

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
  Counter prefetch_used{0};  // of those, groups that were then used
};

inline void add(Counters::Counter& counter, std::uint64_t amount) {
  counter.fetch_add(amount, std::memory_order_relaxed);
}

}  // namespace flash_llm
