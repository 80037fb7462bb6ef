// neurons.bin: verified reads of runs of groups into slots.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "counters.hpp"
#include "errors.hpp"
#include "slab.hpp"

namespace flash_llm {

// Neighbouring groups of the file, each into a slot of its own, or into Slab::kDiscard where nobody
// wants it; the section is for messages.
struct Run {
  int section = 0;
  std::int64_t first_group = 0;
  std::vector<std::int32_t> slots;

  std::int64_t end_group() const {
    return first_group + static_cast<std::int64_t>(slots.size());
  }
};

// What happens to the checksums at the groups' ends; only measurements do without comparing.
enum class Checksums { kCompared, kComputed, kIgnored };

class GroupFile {
 public:
  // Reads directly where `direct_io` is wanted and the file system can; ReadFault if the file
  // cannot be opened.
  GroupFile(const std::string& path, bool direct_io, Checksums checksums, const Slab& slab,
            Counters& counters);
  ~GroupFile();
  GroupFile(const GroupFile&) = delete;
  GroupFile& operator=(const GroupFile&) = delete;

  bool direct() const { return direct_; }
  // Whole groups in the file.
  std::int64_t groups() const;
  // ReadFault unless the file is exactly so long.
  void require_groups(std::int64_t groups) const;
  // The most groups one request should read, so that requests stay parallel.
  std::size_t request_groups() const;

  // Reads, and verifies what is wanted; one retry, then the fault. Any thread may call it.
  std::optional<ReadFault> read(const Run& run) const;

 private:
  void open();
  std::int64_t size() const;
  bool direct_read_works() const;
  std::optional<ReadFault> read_once(const Run& run) const;
  std::optional<ReadFault> verify(const Run& run) const;
  std::string where(const Run& run, std::size_t index) const;

  std::string path_;
  const Slab& slab_;
  Counters& counters_;
  bool direct_;
  const Checksums checksums_;
  int descriptor_ = -1;
};

}  // namespace flash_llm
