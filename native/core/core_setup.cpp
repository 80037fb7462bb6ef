// How a core is made: the file, the slab, and what its slots are for.
#include "core/core.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "io/pending_reads.hpp"

namespace flash_llm {
namespace {

constexpr std::int64_t kChecksumBytes = 4;
constexpr std::int64_t kMostSlots = std::numeric_limits<std::int32_t>::max();
// One read call delivers less than 2 GiB.
constexpr std::int64_t kMostChunkBytes = std::int64_t{1} << 30;

RowFormat format_of(const std::string& codec, std::int64_t dim, bool biased) {
  constexpr std::pair<const char*, Codec> kCodecs[] = {{"int8", Codec::kInt8},
                                                       {"int4", Codec::kInt4},
                                                       {"fp16", Codec::kFp16},
                                                       {"mxfp4", Codec::kMxfp4}};
  for (const auto& [name, found] : kCodecs) {
    if (codec == name) {
      return {found, dim, biased};
    }
  }
  throw ArgumentError("codec", "'" + codec + "'", "one of int8, int4, fp16, mxfp4");
}

std::int64_t checked_dim(std::int64_t dim) {
  require(dim >= 1 && dim <= kMostChunkBytes, "dim", dim, "a positive integer");
  return dim;
}

std::int64_t checked_group_bytes(std::int64_t group_bytes) {
  require(group_bytes >= 1, "group_bytes", group_bytes, "at least 1");
  require(group_bytes % 512 == 0 && group_bytes <= kMostChunkBytes, "group_bytes", group_bytes,
          "a multiple of 512, at most 1 GiB");
  return group_bytes;
}

std::string between(std::int64_t low, std::int64_t high) {
  return "between " + std::to_string(low) + " and " + std::to_string(high);
}

int checked_threads(const char* field, int threads) {
  require(threads >= 1 && threads <= 256, field, threads, between(1, 256));
  return threads;
}

}  // namespace

NeuronCore::NeuronCore(const CoreOptions& options)
    : dim_(checked_dim(options.dim)),
      group_bytes_(checked_group_bytes(options.group_bytes)),
      groups_(options.groups),
      math_(dim_, choose_kernels(), checked_threads("threads", options.threads)) {
  require(groups_ >= 1 && groups_ <= kMostSlots, "groups", groups_, "at least 1, below 2**31");
  require(options.slots >= 1 && options.slots <= kMostSlots, "slots", options.slots,
          "at least 1, below 2**31");
  slab_ = std::make_unique<Slab>(static_cast<std::int32_t>(options.slots),
                                 static_cast<std::size_t>(group_bytes_), options.lock_memory);
  file_ = std::make_unique<GroupFile>(options.path, options.identity, options.direct_io,
                                      Checksums::kCompared, *slab_, counters_);
  file_->require_groups(groups_);
  reader_ = make_reader(options.reader, *file_, options.reads_in_flight);
  read_costs_.largest = file_->request_groups();
  direct_ = file_->direct();
  locked_ = slab_->locked();
  reader_name_ = reader_->name();
}

NeuronCore::~NeuronCore() { close(); }

void NeuronCore::close() {
  const std::lock_guard turn(calls_);
  ring_.reset();
  cache_.reset();
  reader_.reset();
  file_.reset();
  slab_.reset();
  math_.stop();
}

int NeuronCore::add_section(std::int64_t first_group, std::int64_t bundles,
                            std::int64_t bundles_per_group, int rows,
                            const std::string& codec, std::int64_t dim, std::int64_t copies,
                            std::int64_t stride, bool biased) {
  const std::lock_guard turn(calls_);
  check_open();
  require(bundles >= 1, "bundles", bundles, "at least 1");
  require(rows >= 1 && rows <= 3, "rows", rows, "1, 2 or 3");
  require(dim == dim_ || rows == 1, "dim", dim,
          std::to_string(dim_) + ", as the core has it, for bundles of several rows");
  const RowFormat format = format_of(codec, checked_dim(dim), biased);
  const std::int64_t fitting = (group_bytes_ - kChecksumBytes) /
                               (rows * static_cast<std::int64_t>(format.row_bytes()));
  require(bundles_per_group >= 1 && bundles_per_group <= fitting, "bundles_per_group",
          bundles_per_group,
          "at least 1, and so few that they fit in a group of " + std::to_string(group_bytes_) +
              " bytes (" + std::to_string(fitting) + ")");
  Section section{first_group, bundles, bundles_per_group, rows, format};
  require(copies >= 1 && copies <= groups_, "copies", copies, between(1, groups_));
  require(copies == 1 ? stride == 0 : stride >= section.groups() && stride <= groups_, "stride",
          stride, copies == 1 ? "0 for a single section" :
          between(section.groups(), groups_) + ", so that copies lie side by side");
  section.copies = copies;
  section.stride = stride;
  const std::int64_t taken = (copies - 1) * stride + section.groups();
  require(first_group >= 0 && first_group <= groups_ - taken, "first_group", first_group,
          "such that " + std::to_string(taken) + " groups lie within the file of " +
              std::to_string(groups_));
  math_.fit(format, rows);
  sections_.push_back(section);
  return static_cast<int>(sections_.size()) - 1;
}

Section NeuronCore::section(int index, int least_rows, int most_rows) {
  const std::lock_guard turn(calls_);
  check_open();
  const Section& found = find(index);
  const std::string wanted = std::to_string(least_rows) +
                             (least_rows < most_rows ? " or " + std::to_string(most_rows) : "");
  require(least_rows <= found.rows && found.rows <= most_rows, "section", index,
          "one of bundles of " + wanted + " rows, it has " + std::to_string(found.rows));
  return found;
}

void NeuronCore::pin(int section, std::int64_t groups) {
  const std::lock_guard turn(calls_);
  check_open();
  Section& found = find(section);
  require(found.pin_slot < 0, "section", section, "one that was not pinned before");
  require(groups >= 0 && groups <= found.groups(), "groups", groups, between(0, found.groups()));
  const std::int32_t slot = slab_->take(groups, "pinning " + std::to_string(groups) + " groups");
  try {
    read_pinned(section, groups, slot);
  } catch (...) {
    slab_->give_back(groups);
    throw;
  }
  found.pinned = groups;
  found.pin_slot = slot;
}

void NeuronCore::read_pinned(int section, std::int64_t groups, std::int32_t first_slot) {
  // Some at a time, so that the bookkeeping stays small beside the slab.
  constexpr std::size_t kMostUnderWay = 32;
  PendingReads pending;
  const std::int64_t first_group = sections_[static_cast<std::size_t>(section)].first_group;
  const std::int64_t most = static_cast<std::int64_t>(reader_->request_groups());
  for (std::int64_t local = 0; local < groups; local += most) {
    Run run{section, first_group + local, {}};
    run.slots.resize(static_cast<std::size_t>(std::min(most, groups - local)));
    std::iota(run.slots.begin(), run.slots.end(), first_slot + static_cast<std::int32_t>(local));
    pending.begin(kMostUnderWay, [&] {
      reader_->submit(Urgency::kDemand, std::move(run),
                      [&pending](const Run& done, const std::optional<ReadFault>& fault) {
                        pending.end(done, fault);
                      });
    });
  }
  pending.finish();
}

void NeuronCore::set_ring(std::int64_t chunk_groups, std::int64_t chunks) {
  const std::lock_guard turn(calls_);
  check_open();
  require(chunk_groups >= 1 && chunk_groups <= kMostChunkBytes / group_bytes_, "chunk_groups",
          chunk_groups, between(1, kMostChunkBytes / group_bytes_));
  require(chunks >= 1 && chunks <= kMostSlots / chunk_groups, "chunks", chunks,
          between(1, kMostSlots / chunk_groups));
  if (ring_) {
    throw ArgumentError("set_ring", "a second call", "called once");
  }
  const std::int32_t slot = slab_->take(chunk_groups * chunks, "the stream ring");
  ring_ = std::make_unique<StreamRing>(*reader_, counters_, sections_, slot, chunk_groups, chunks);
}

void NeuronCore::set_cache(std::int64_t slots, int half_life) {
  const std::lock_guard turn(calls_);
  check_open();
  require(slots >= 1, "slots", slots, "at least 1");
  require(half_life >= 1 && half_life <= UseChances::kMostHalfLife, "half_life", half_life,
          between(1, UseChances::kMostHalfLife));
  if (cache_) {
    throw ArgumentError("set_cache", "a second call", "called once");
  }
  const std::int32_t slot = slab_->take(slots, "the cache");
  try {
    cache_ = std::make_unique<GroupCache>(*reader_, counters_, read_costs_, groups_, slot,
                                          static_cast<std::int32_t>(slots), half_life);
  } catch (...) {
    slab_->give_back(slots);
    throw;
  }
}

void NeuronCore::set_stream_order(const std::vector<int>& sections) {
  const std::lock_guard turn(calls_);
  check_open();
  for (const int section : sections) {
    find(section);
  }
  if (ring_) {
    ring_->set_order(sections);
  } else if (!sections.empty()) {
    throw ArgumentError("sections", "a stream order", "empty as long as set_ring was not called");
  }
}

void NeuronCore::limit_threads(int most) {
  const std::lock_guard turn(calls_);
  check_open();
  math_.limit_threads(checked_threads("most", most));
}

void NeuronCore::set_read_costs(double request_seconds, double byte_seconds,
                                std::int64_t largest_bytes) {
  const std::lock_guard turn(calls_);
  check_open();
  const auto require_positive = [](const char* name, double value) {
    if (!(std::isfinite(value) && value > 0.0)) {
      throw ArgumentError(name, std::to_string(value), "above 0 and finite");
    }
  };
  require_positive("request_seconds", request_seconds);
  require_positive("byte_seconds", byte_seconds);
  require(largest_bytes >= 1, "largest_bytes", largest_bytes, "at least 1");
  const std::int64_t most = static_cast<std::int64_t>(file_->request_groups());
  read_costs_ = {request_seconds / (byte_seconds * static_cast<double>(group_bytes_)),
                 static_cast<std::size_t>(
                     std::clamp<std::int64_t>(largest_bytes / group_bytes_, 1, most))};
}

}  // namespace flash_llm
