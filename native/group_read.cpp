#include "group_read.hpp"

#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

namespace flash_llm {

GroupRead::GroupRead(const GroupFile& file, Run run) : file_(file), run_(std::move(run)) {
  ask_from(0);
}

off_t GroupRead::offset() const {
  return (run_.first_group + static_cast<off_t>(arrived_)) *
         static_cast<off_t>(file_.slab().slot_bytes());
}

bool GroupRead::finished(ssize_t answer) {
  if (answer == -EINTR) {
    return false;
  }
  Counters& counters = file_.counters();
  add(counters.flash_reads, 1);
  if (answer < 0) {
    return failed({ReadFault::Kind::kRead,
                   file_.where(run_, arrived_) + ": read failed twice: " +
                       std::generic_category().message(static_cast<int>(-answer))});
  }
  const std::size_t bytes = static_cast<std::size_t>(answer);
  const std::size_t slot_bytes = file_.slab().slot_bytes();
  add(counters.flash_bytes, bytes);
  file_.drop_pages(offset(), static_cast<off_t>(missing_bytes()));
  if (bytes < missing_bytes()) {
    if (bytes < slot_bytes) {
      return failed({ReadFault::Kind::kRead,
                     file_.where(run_, 0) + ": read ended after " +
                         std::to_string(arrived_ * slot_bytes + bytes) + " of " +
                         std::to_string(run_.slots.size() * slot_bytes) + " bytes twice"});
    }
    ask_from(arrived_ + bytes / slot_bytes);
    return false;
  }
  std::optional<ReadFault> corrupt = file_.verify(run_);
  return corrupt ? failed(*std::move(corrupt)) : true;
}

// One piece per stretch of neighbouring slots: a contiguous run is a single plain read.
void GroupRead::ask_from(std::size_t index) {
  const Slab& slab = file_.slab();
  arrived_ = index;
  pieces_.clear();
  for (std::size_t i = index; i < run_.slots.size(); ++i) {
    if (i > index && run_.slots[i] == run_.slots[i - 1] + 1) {
      pieces_.back().iov_len += slab.slot_bytes();
    } else {
      pieces_.push_back({slab.slot(run_.slots[i]), slab.slot_bytes()});
    }
  }
}

std::size_t GroupRead::missing_bytes() const {
  return (run_.slots.size() - arrived_) * file_.slab().slot_bytes();
}

bool GroupRead::failed(ReadFault fault) {
  if (repeated_) {
    fault_ = std::move(fault);
    return true;
  }
  repeated_ = true;
  add(file_.counters().retries, 1);
  ask_from(0);
  return false;
}

}  // namespace flash_llm
