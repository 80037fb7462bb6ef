// One verified read of a run, however many calls of the kernel it takes.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <optional>
#include <vector>

#include "group_file.hpp"

namespace flash_llm {

// Whoever talks to the kernel asks it for `pieces` at `offset` and reports what it said, until that
// finishes the read. A short answer is gone on from at the first group that is missing; what failed
// or is corrupt is read once more from its start, and then is a fault.
class GroupRead {
 public:
  GroupRead(const GroupFile& file, Run run);

  const Run& run() const { return run_; }
  const std::vector<iovec>& pieces() const { return pieces_; }
  off_t offset() const;
  // `answer`: bytes, or minus an error number. Computes the checksums of what is complete.
  bool finished(ssize_t answer);
  // Once finished.
  const std::optional<ReadFault>& fault() const { return fault_; }

 private:
  void ask_from(std::size_t index);
  std::size_t missing_bytes() const;
  bool failed(ReadFault fault);

  const GroupFile& file_;
  Run run_;
  std::size_t arrived_ = 0;  // groups
  std::vector<iovec> pieces_;
  bool repeated_ = false;
  std::optional<ReadFault> fault_;
};

}  // namespace flash_llm
