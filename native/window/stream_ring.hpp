// Sections that do not fit the slab, streamed: chunks of groups read ahead in a fixed order.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "io/counters.hpp"
#include "io/reader.hpp"
#include "window/sections.hpp"

namespace flash_llm {

// All public calls come from the compute thread.
class StreamRing {
 public:
  struct Chunk {
    std::int64_t first_local;  // group within its section
    std::int64_t groups;
    std::int32_t slot;
  };

  StreamRing(Reader& reader, Counters& counters, const Sections& sections,
             std::int32_t first_slot, std::int64_t chunk_groups, std::int64_t chunks);
  ~StreamRing();
  StreamRing(const StreamRing&) = delete;
  StreamRing& operator=(const StreamRing&) = delete;

  // The cyclic order in which sections will be wanted; reading ahead begins at once, and goes on
  // behind whatever is wanted out of order.
  void set_order(std::vector<int> order);
  std::int64_t chunk_groups() const { return chunk_groups_; }
  // Whether the chunk acquired last had to be waited for: reading is what takes time.
  bool behind() const { return behind_; }
  // The chunk that begins with this group, waited for. What failed while it was read ahead, which
  // may be long ago, is read anew; ReadFault if that failed, too.
  Chunk acquire(int section, std::int64_t first_local);
  // The acquired chunk is no longer needed: its slots take the next one of the order.
  void release();

 private:
  struct Entry {
    int section = -1;
    Chunk chunk{};
    std::size_t reading = 0;  // requests
    std::int64_t failed_group = 0;
    std::optional<ReadFault> fault;  // of the earliest group among those that failed
  };
  // Where reading ahead goes on; order_position -1: a section outside the order, to its end.
  struct Cursor {
    int section;
    std::int64_t local;
    std::int64_t order_position;
  };

  // Whether acquire() would return at once.
  bool ready(int section, std::int64_t first_local);
  // Forgets everything read ahead, once no read is under way.
  void drain();
  void seek(int section, std::int64_t first_local);
  void fill();
  void submit(Urgency urgency, Entry& entry);
  void arrived(Entry& entry, const Run& run, const std::optional<ReadFault>& fault);
  // The fault, if any, of a chunk that is waited for.
  std::optional<ReadFault> wait(Entry& entry);
  void advance(Cursor& cursor, std::int64_t groups);
  std::optional<Cursor> next_in_order(std::int64_t position) const;

  Reader& reader_;
  Counters& counters_;
  const Sections& sections_;
  const std::int32_t first_slot_;
  const std::int64_t chunk_groups_;
  std::vector<int> order_;
  std::optional<Cursor> cursor_;
  std::vector<Entry> entries_;
  bool behind_ = false;
  std::size_t head_ = 0;   // the oldest entry in use
  std::size_t count_ = 0;  // entries in use

  std::mutex mutex_;  // guards what reader threads touch: reading, fault and reading_
  std::condition_variable arrived_;
  std::size_t reading_ = 0;  // requests
};

}  // namespace flash_llm
