#include "core.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "pending_reads.hpp"

namespace flash_llm {
namespace {

constexpr std::int64_t kChecksumBytes = 4;
constexpr std::int64_t kMostSlots = std::numeric_limits<std::int32_t>::max();
// One read call delivers less than 2 GiB.
constexpr std::int64_t kMostChunkBytes = std::int64_t{1} << 30;

RowFormat format_of(const std::string& codec, std::int64_t dim) {
  if (codec != "int8" && codec != "int4" && codec != "fp16") {
    throw ArgumentError("codec", "'" + codec + "'", "one of int8, int4, fp16");
  }
  return {codec == "int8" ? Codec::kInt8 : codec == "int4" ? Codec::kInt4 : Codec::kFp16, dim};
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
  file_ = std::make_unique<GroupFile>(options.path, options.direct_io, Checksums::kCompared, *slab_,
                                      counters_);
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
  window_.reset();
  reader_.reset();
  file_.reset();
  slab_.reset();
  math_.stop();
}

int NeuronCore::add_section(std::int64_t first_group, std::int64_t bundles,
                            std::int64_t bundles_per_group, int rows,
                            const std::string& codec) {
  const std::lock_guard turn(calls_);
  check_open();
  require(bundles >= 1, "bundles", bundles, "at least 1");
  require(rows >= 1 && rows <= 3, "rows", rows, "1, 2 or 3");
  const RowFormat format = format_of(codec, dim_);
  const std::int64_t fitting = (group_bytes_ - kChecksumBytes) /
                               (rows * static_cast<std::int64_t>(format.row_bytes()));
  require(bundles_per_group >= 1 && bundles_per_group <= fitting, "bundles_per_group",
          bundles_per_group,
          "at least 1, and so few that they fit in a group of " + std::to_string(group_bytes_) +
              " bytes (" + std::to_string(fitting) + ")");
  const Section section{first_group, bundles, bundles_per_group, rows, format};
  require(first_group >= 0 && first_group <= groups_ - section.groups(), "first_group",
          first_group,
          "such that " + std::to_string(section.groups()) + " groups lie within the file of " +
              std::to_string(groups_));
  math_.fit(format);
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
  } catch (const ReadFault&) {
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
    pending.begin(kMostUnderWay);
    reader_->submit(Urgency::kDemand, std::move(run),
                    [&pending](const Run& done, const std::optional<ReadFault>& fault) {
                      pending.end(done, fault);
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

void NeuronCore::set_cache(std::int64_t slots, const std::string& policy) {
  const std::lock_guard turn(calls_);
  check_open();
  require(slots >= 1, "slots", slots, "at least 1");
  if (window_) {
    throw ArgumentError("set_cache", "a second call", "called once");
  }
  require(slots <= kMostSlots, "slots", slots, "below 2**31");
  auto chosen = make_policy(policy, static_cast<std::int32_t>(slots), groups_);
  const std::int32_t slot = slab_->take(slots, "the cache");
  window_ = std::make_unique<Window>(*reader_, counters_, read_costs_, groups_, slot,
                                     static_cast<std::int32_t>(slots), std::move(chosen));
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

void NeuronCore::rows_dot(int section, Inputs x, Outputs out) {
  dots(section, x, kPlainRows, out);
}

void NeuronCore::gate_up(int section, Inputs x, Activation activation, Outputs h) {
  dots(section, x, {2, true, activation}, h);
}

void NeuronCore::dots(int section, Inputs x, const Neurons& neurons, Outputs out) {
  const std::lock_guard turn(calls_);
  const PreparedInputs prepared = prepare(section, x);
  std::int64_t done = 0;
  walk(section).for_each_batch(section, BatchMath::most_bundles(1), [&](const Batch& batch) {
    math_.activate(batch, neurons, prepared, out.columns_from(done));
    done += batch.size();
  });
}

void NeuronCore::add_rows(int section, Inputs h, Outputs out) {
  const std::lock_guard turn(calls_);
  begin_sum(section, out);
  std::int64_t done = 0;
  walk(section).for_each_batch(section, BatchMath::most_bundles(1), [&](const Batch& batch) {
    math_.add_last_rows(batch, 1, h.columns_from(done));
    done += batch.size();
  });
  math_.end_sum();
}

void NeuronCore::bundled(int section, Inputs x, const Neurons& neurons, Outputs out) {
  const std::lock_guard turn(calls_);
  const PreparedInputs prepared = prepare(section, x);
  begin_sum(section, out);
  walk(section).for_each_batch(section, BatchMath::most_bundles(x.tokens), [&](const Batch& batch) {
    const Outputs h = math_.room(x.tokens, batch.size());
    math_.activate(batch, neurons, prepared, h);
    math_.add_last_rows(batch, neurons.bundle_rows, h.read_only());
  });
  math_.end_sum();
}

void NeuronCore::add_rows_sparse(int section, const float* h, const std::uint8_t* active,
                                 float* out, bool stream) {
  const std::lock_guard turn(calls_);
  begin_sum(section, {out, 1, dim_});
  const auto use = [&](const Batch& batch) {
    const Outputs some = math_.room(1, batch.size());
    batch.each(0, batch.size(), 0,
               [&](std::int64_t place, std::int64_t number, const std::uint8_t*) {
                 some.data[place] = h[number];
               });
    math_.add_last_rows(batch, 1, some.read_only());
  };
  if (stream) {
    walk(section).for_each_batch(section, BatchMath::most_bundles(1), use, active);
  } else {
    walk(section).for_active_batches(section, active, use);
  }
  math_.end_sum();
}

void NeuronCore::bundled_sparse(int section, const float* x, const std::uint8_t* active,
                                float* out, const Neurons& neurons, float* h_out) {
  const std::lock_guard turn(calls_);
  const PreparedInputs prepared = prepare(section, {x, 1, dim_});
  if (h_out != nullptr) {
    std::fill_n(h_out, find(section).bundles, 0.0f);
  }
  begin_sum(section, {out, 1, dim_});
  walk(section).for_active_batches(section, active, [&](const Batch& batch) {
    const Outputs h = math_.room(1, batch.size());
    math_.activate(batch, neurons, prepared, h);
    math_.add_last_rows(batch, neurons.bundle_rows, h.read_only());
    if (h_out != nullptr) {
      batch.each(0, batch.size(), 0,
                 [&](std::int64_t place, std::int64_t number, const std::uint8_t*) {
                   h_out[number] = h.data[place];
                 });
    }
  });
  math_.end_sum();
}

void NeuronCore::prefetch(int section, const std::uint8_t* wanted) {
  const std::lock_guard turn(calls_);
  check_open();
  const Section& found = find(section);
  std::vector<std::int64_t> groups = found.flagged_groups(wanted, found.pinned);
  for (std::int64_t& group : groups) {
    group += found.first_group;
  }
  if (window_ && !groups.empty()) {
    window_->prefetch(section, groups);
  }
}

std::int64_t NeuronCore::fetch(int section, std::uint8_t* active, const float* importance,
                               Deadline deadline) {
  const std::lock_guard turn(calls_);
  check_open();
  const Section& found = find(section);
  struct Wanted {
    float importance;
    std::int64_t local;
  };
  std::vector<Wanted> wanted;
  for (std::int64_t local = found.pinned; local < found.groups(); ++local) {
    const std::int64_t first = local * found.bundles_per_group;
    Wanted group{0, local};
    bool any = false;
    for (std::int64_t i = first; i < first + found.bundles_in(local); ++i) {
      any = any || active[i];
      group.importance += active[i] ? importance[i] : 0;
    }
    if (any) {
      wanted.push_back(group);
    }
  }
  if (wanted.empty()) {
    return 0;
  }
  if (!window_) {
    throw ArgumentError("set_cache", "no call", "called before unpinned groups are used");
  }
  std::stable_sort(wanted.begin(), wanted.end(), [](const Wanted& a, const Wanted& b) {
    return a.importance > b.importance;
  });
  std::vector<std::int64_t> groups;
  for (const Wanted& group : wanted) {
    groups.push_back(found.first_group + group.local);
  }
  const std::vector<bool> here = window_->fetch(section, groups, deadline);
  std::int64_t left_out = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (!here[i]) {
      std::uint8_t* const first = active + wanted[i].local * found.bundles_per_group;
      std::uint8_t* const end = first + found.bundles_in(wanted[i].local);
      left_out += std::count_if(first, end, [](std::uint8_t flag) { return flag != 0; });
      std::fill(first, end, std::uint8_t{0});
    }
  }
  add(counters_.left_out, static_cast<std::uint64_t>(left_out));
  return left_out;
}

void NeuronCore::read_rows(int section, const std::int64_t* ids, std::int64_t count, float* out) {
  const std::lock_guard turn(calls_);
  check_open();
  const Section& found = find(section);
  // By group, so that each is fetched once however often its rows are wanted.
  std::vector<std::int64_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  const auto group_of = [&](std::int64_t i) { return ids[i] / found.bundles_per_group; };
  std::sort(order.begin(), order.end(),
            [&](std::int64_t a, std::int64_t b) { return group_of(a) < group_of(b); });
  std::vector<std::int64_t> locals;
  for (const std::int64_t i : order) {
    if (locals.empty() || locals.back() != group_of(i)) {
      locals.push_back(group_of(i));
    }
  }
  auto next = order.begin();
  const auto decode = [&](std::size_t index, const std::uint8_t* group) {
    for (; next != order.end() && group_of(*next) == locals[index]; ++next) {
      const std::size_t within = static_cast<std::size_t>(ids[*next] % found.bundles_per_group);
      math_.decode_row(found.format, group + within * found.format.row_bytes(),
                       out + *next * dim_);
    }
  };
  walk(section).for_some_groups(section, locals, decode, [] {});
}

PreparedInputs NeuronCore::prepare(int section, Inputs x) {
  check_open();
  return math_.prepare(find(section).format, x);
}

void NeuronCore::begin_sum(int section, Outputs out) {
  check_open();
  math_.begin_sum(find(section).bundles, out);
}

GroupWalk NeuronCore::walk(int section) {
  check_open();
  find(section);
  return {sections_, *slab_, counters_, batch_, ring_.get(), window_.get()};
}

Section& NeuronCore::find(int section) {
  require(section >= 0 && static_cast<std::size_t>(section) < sections_.size(), "section", section,
          "one of the " + std::to_string(sections_.size()) + " that were added");
  return sections_[static_cast<std::size_t>(section)];
}

void NeuronCore::check_open() const {
  if (!slab_) {
    throw std::runtime_error("the neuron core is closed");
  }
}

}  // namespace flash_llm
