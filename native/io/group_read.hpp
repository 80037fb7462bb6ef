// One verified read of a run, however many calls of the kernel it takes.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <optional>
#include <vector>

#include "io/group_file.hpp"

namespace flash_llm {

// Whoever talks to the kernel asks it for `pieces` at `offset` and reports what it said, until all
// has arrived; then checksums are computed, by any thread, and sometimes there is more to ask for.
// A short answer is gone on from at the first group that is missing. What failed or is corrupt is
// read once more, without the groups that nobody wants: an unreadable block among them must not
// fail anybody. What fails then is a fault.
class GroupRead {
 public:
  GroupRead(const GroupFile& file, Run run);

  const Run& run() const { return run_; }
  const std::vector<iovec>& pieces() const { return pieces_; }
  off_t offset() const;
  // `answer`: bytes, or minus an error number. False: the kernel is to be asked again, at once.
  bool arrived(ssize_t answer);
  // Once arrived; computes the checksums. False: the kernel is to be asked again.
  bool finished();
  // Once finished.
  const std::optional<ReadFault>& fault() const { return fault_; }

 private:
  // Neighbouring groups of the run that are read together, as far as the kernel likes.
  struct Part {
    std::size_t begin;
    std::size_t arrived;  // up to here
    std::size_t end;
  };

  void ask();
  bool ask_for_wanted(std::size_t from);
  std::size_t bytes_of(std::size_t groups) const { return groups * file_.slab().slot_bytes(); }
  bool failed(ReadFault fault);

  const GroupFile& file_;
  Run run_;
  Part part_;
  std::vector<iovec> pieces_;
  bool repeated_ = false;
  std::optional<ReadFault> fault_;
};

}  // namespace flash_llm
