#include "window/stream_ring.hpp"

#include <algorithm>
#include <new>
#include <numeric>
#include <utility>

namespace flash_llm {
namespace {

// Pieces of a chunk, of about so much, so that a small ring keeps many reads in flight.
constexpr std::int64_t kRequestBytes = 128 << 10;

}  // namespace

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

bool StreamRing::ready(int section, std::int64_t first_local) {
  const Entry& entry = entries_[head_];
  const std::lock_guard lock(mutex_);
  return count_ > 0 && entry.section == section && entry.chunk.first_local == first_local &&
         entry.reading == 0;
}

StreamRing::Chunk StreamRing::acquire(int section, std::int64_t first_local) {
  behind_ = !ready(section, first_local);
  const Entry& expected = entries_[head_];
  if (count_ == 0 || expected.section != section || expected.chunk.first_local != first_local) {
    seek(section, first_local);
  }
  Entry& entry = entries_[head_];
  std::optional<ReadFault> fault = wait(entry);
  if (fault) {
    submit(Urgency::kDemand, entry);
    fault = wait(entry);
  }
  if (fault) {
    drain();
    throw *fault;
  }
  return entry.chunk;
}

std::optional<ReadFault> StreamRing::wait(Entry& entry) {
  std::unique_lock lock(mutex_);
  if (entry.reading > 0) {
    const Stopwatch waiting(counters_.wait_ns);
    arrived_.wait(lock, [&] { return entry.reading == 0; });
  }
  return entry.fault;
}

void StreamRing::release() {
  head_ = (head_ + 1) % entries_.size();
  --count_;
  fill();
}

void StreamRing::drain() {
  const std::size_t cancelled = reader_.cancel_stream();
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
    submit(Urgency::kStream, entry);
    advance(*cursor_, entry.chunk.groups);
  }
}

void StreamRing::submit(Urgency urgency, Entry& entry) {
  const std::int64_t group = reader_.group_bytes();
  const std::int64_t most = std::max<std::int64_t>((kRequestBytes + group / 2) / group, 1);
  std::size_t requests = static_cast<std::size_t>((entry.chunk.groups + most - 1) / most);
  {
    const std::lock_guard lock(mutex_);
    entry.reading = requests;
    entry.fault.reset();
    reading_ += requests;
  }
  counters_.reading.begin(requests);
  const std::int64_t first_group = sections_[static_cast<std::size_t>(entry.section)].first_group +
                                   entry.chunk.first_local;
  try {
    for (std::int64_t done = 0; done < entry.chunk.groups; done += most, --requests) {
      Run run{entry.section, first_group + done, {}};
      run.slots.resize(static_cast<std::size_t>(std::min(most, entry.chunk.groups - done)));
      std::iota(run.slots.begin(), run.slots.end(),
                entry.chunk.slot + static_cast<std::int32_t>(done));
      reader_.submit(urgency, std::move(run),
                     [this, &entry](const Run& read, const std::optional<ReadFault>& fault) {
                       arrived(entry, read, fault);
                     });
    }
  } catch (const std::bad_alloc&) {
    const std::lock_guard lock(mutex_);
    entry.reading -= requests;
    reading_ -= requests;
    counters_.reading.end(requests);
    entry.section = -1;  // nobody finds it, so that the next acquire() begins anew
    throw;
  }
}

void StreamRing::arrived(Entry& entry, const Run& run, const std::optional<ReadFault>& fault) {
  const std::lock_guard lock(mutex_);
  if (fault && (!entry.fault || run.first_group < entry.failed_group)) {
    entry.fault = fault;
    entry.failed_group = run.first_group;
  }
  --entry.reading;
  --reading_;
  counters_.reading.end(1);
  if (entry.reading == 0 || reading_ == 0) {
    // Under the lock: whoever waits may destroy this object next.
    arrived_.notify_all();
  }
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
