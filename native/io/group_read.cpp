#include "io/group_read.hpp"

#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

namespace flash_llm {

GroupRead::GroupRead(const GroupFile& file, Run run)
    : file_(file), run_(std::move(run)), part_{0, 0, run_.slots.size()} {
  ask();
}

off_t GroupRead::offset() const {
  return (run_.first_group + static_cast<off_t>(part_.arrived)) *
         static_cast<off_t>(file_.slab().slot_bytes());
}

bool GroupRead::arrived(ssize_t answer) {
  if (answer == -EINTR) {
    return false;
  }
  Counters& counters = file_.counters();
  add(counters.flash_reads, 1);
  if (answer < 0) {
    return failed({ReadFault::Kind::kRead,
                   file_.where(run_, part_.begin) + ": read failed twice: " +
                       std::generic_category().message(static_cast<int>(-answer)) +
                       "; `dmesg` may say more"});
  }
  const std::size_t bytes = static_cast<std::size_t>(answer);
  const std::size_t missing = bytes_of(part_.end - part_.arrived);
  add(counters.flash_bytes, bytes);
  file_.drop_pages(offset(), static_cast<off_t>(missing));
  if (bytes < missing) {
    const std::size_t groups = bytes / file_.slab().slot_bytes();
    if (groups == 0) {
      return failed({ReadFault::Kind::kRead,
                     file_.where(run_, part_.begin) + ": read ended after " +
                         std::to_string(bytes_of(part_.arrived - part_.begin) + bytes) + " of " +
                         std::to_string(bytes_of(part_.end - part_.begin)) +
                         " bytes twice; the file was truncated or the medium is gone"});
    }
    part_.arrived += groups;
    ask();
    return false;
  }
  return true;
}

bool GroupRead::finished() {
  if (fault_) {
    return true;
  }
  if (std::optional<ReadFault> corrupt = file_.verify(run_, part_.begin, part_.end)) {
    return failed(*std::move(corrupt));
  }
  return !repeated_ || !ask_for_wanted(part_.end);
}

// One piece per stretch of neighbouring slots: a contiguous run is a single plain read.
void GroupRead::ask() {
  const Slab& slab = file_.slab();
  pieces_.clear();
  for (std::size_t i = part_.arrived; i < part_.end; ++i) {
    if (i > part_.arrived && run_.slots[i] == run_.slots[i - 1] + 1 &&
        run_.slots[i - 1] != Slab::kDiscard) {
      pieces_.back().iov_len += slab.slot_bytes();
    } else {
      pieces_.push_back({slab.slot(run_.slots[i]), slab.slot_bytes()});
    }
  }
}

// The next stretch of wanted groups; false if there is none.
bool GroupRead::ask_for_wanted(std::size_t from) {
  while (from < run_.slots.size() && run_.slots[from] == Slab::kDiscard) {
    ++from;
  }
  std::size_t end = from;
  while (end < run_.slots.size() && run_.slots[end] != Slab::kDiscard) {
    ++end;
  }
  if (from == end) {
    return false;
  }
  part_ = {from, from, end};
  ask();
  return true;
}

bool GroupRead::failed(ReadFault fault) {
  if (!repeated_ && ask_for_wanted(0)) {
    repeated_ = true;
    add(file_.counters().retries, 1);
    return false;
  }
  fault_ = std::move(fault);
  return true;
}

}  // namespace flash_llm
