#include "stream_ring.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace flash_llm {

StreamRing::StreamRing(Reader& reader, Counters& counters, const Sections& sections,
                       std::int32_t first_slot, std::int64_t chunk_groups, std::int64_t chunks)
    : reader_(reader),
      counters_(counters),
      sections_(sections),
      first_slot_(first_slot),
      chunk_groups_(chunk_groups),
      entries_(static_cast<std::size_t>(chunks)) {}

StreamRing::~StreamRing() { drain(); }

void StreamRing::set_order(std::vector<int> order) {
  drain();
  order_ = std::move(order);
  cursor_ = next_in_order(0);
  fill();
}

StreamRing::Chunk StreamRing::acquire(int section, std::int64_t first_local) {
  const Entry& expected = entries_[head_];
  if (count_ == 0 || expected.section != section || expected.chunk.first_local != first_local) {
    seek(section, first_local);
  }
  Entry& entry = entries_[head_];
  std::unique_lock lock(mutex_);
  if (entry.status == Status::kReading) {
    const Stopwatch waiting(counters_.wait_ns);
    arrived_.wait(lock, [&] { return entry.status != Status::kReading; });
  }
  if (entry.status == Status::kFailed) {
    const ReadFault fault = *entry.fault;
    lock.unlock();
    drain();
    throw fault;
  }
  return entry.chunk;
}

void StreamRing::release() {
  head_ = (head_ + 1) % entries_.size();
  --count_;
  fill();
}

void StreamRing::drain() {
  const std::size_t cancelled = reader_.cancel(Urgency::kStream).size();
  std::unique_lock lock(mutex_);
  reading_ -= cancelled;
  counters_.reading.end(cancelled);
  arrived_.wait(lock, [&] { return reading_ == 0; });
  count_ = 0;
  cursor_.reset();
}

void StreamRing::seek(int section, std::int64_t first_local) {
  drain();
  const auto place = std::find(order_.begin(), order_.end(), section);
  cursor_ = Cursor{section, first_local, place == order_.end() ? -1 : place - order_.begin()};
  fill();
}

void StreamRing::fill() {
  while (cursor_ && count_ < entries_.size()) {
    const Section& section = sections_[static_cast<std::size_t>(cursor_->section)];
    const std::size_t index = (head_ + count_) % entries_.size();
    Entry& entry = entries_[index];
    entry.section = cursor_->section;
    entry.chunk.first_local = cursor_->local;
    entry.chunk.groups = std::min(chunk_groups_, section.groups() - cursor_->local);
    entry.chunk.slot = first_slot_ + static_cast<std::int32_t>(index) *
                                         static_cast<std::int32_t>(chunk_groups_);
    ++count_;
    submit(entry);
    advance(*cursor_, entry.chunk.groups);
  }
}

void StreamRing::submit(Entry& entry) {
  {
    const std::lock_guard lock(mutex_);
    entry.status = Status::kReading;
    entry.fault.reset();
    ++reading_;
    counters_.reading.begin(1);
  }
  Run run;
  run.section = entry.section;
  run.first_group = sections_[static_cast<std::size_t>(entry.section)].first_group +
                    entry.chunk.first_local;
  run.slots.resize(static_cast<std::size_t>(entry.chunk.groups));
  std::iota(run.slots.begin(), run.slots.end(), entry.chunk.slot);
  reader_.submit(Urgency::kStream, std::move(run),
                 [this, &entry](const Run&, const std::optional<ReadFault>& fault) {
                   const std::lock_guard lock(mutex_);
                   entry.status = fault ? Status::kFailed : Status::kReady;
                   entry.fault = fault;
                   --reading_;
                   counters_.reading.end(1);
                   // Under the lock: whoever waits may destroy this object next.
                   arrived_.notify_all();
                 });
}

void StreamRing::advance(Cursor& cursor, std::int64_t groups) {
  cursor.local += groups;
  if (cursor.local < sections_[static_cast<std::size_t>(cursor.section)].groups()) {
    return;
  }
  if (cursor.order_position < 0) {
    cursor_.reset();
  } else {
    cursor_ = next_in_order(cursor.order_position + 1);
  }
}

std::optional<StreamRing::Cursor> StreamRing::next_in_order(std::int64_t position) const {
  const std::int64_t length = static_cast<std::int64_t>(order_.size());
  for (std::int64_t step = 0; step < length; ++step) {
    const std::int64_t candidate = (position + step) % length;
    const int index = order_[static_cast<std::size_t>(candidate)];
    const Section& section = sections_[static_cast<std::size_t>(index)];
    if (section.pinned < section.groups()) {
      return Cursor{index, section.pinned, candidate};
    }
  }
  return std::nullopt;
}

}  // namespace flash_llm
