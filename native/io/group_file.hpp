// neurons.bin: how it is read, and whether what has arrived in the slots is right.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "errors.hpp"
#include "io/counters.hpp"
#include "io/slab.hpp"

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
  // cannot be opened. `identity` is the store's: with a group's number it is part of its checksum.
  GroupFile(const std::string& path, std::uint64_t identity, bool direct_io, Checksums checksums,
            const Slab& slab, Counters& counters);
  ~GroupFile();
  GroupFile(const GroupFile&) = delete;
  GroupFile& operator=(const GroupFile&) = delete;

  bool direct() const { return direct_; }
  // Whole groups in the file.
  std::int64_t groups() const;
  // ReadFault unless the file is exactly so long.
  void require_groups(std::int64_t groups) const;
  int descriptor() const { return descriptor_; }
  const Slab& slab() const { return slab_; }
  Counters& counters() const { return counters_; }
  // The most groups one request should read, so that requests stay parallel.
  std::size_t request_groups() const;

  // The rest may be called by any thread.
  // Compares the checksums of the wanted among the groups [begin, end) of a run.
  std::optional<ReadFault> verify(const Run& run, std::size_t begin, std::size_t end) const;
  // Keeps what was read out of the page cache where reads are not direct.
  void drop_pages(off_t offset, off_t size) const;
  // How a sentence about one group of a run begins.
  std::string where(const Run& run, std::size_t index) const;

 private:
  void open();
  std::int64_t size() const;
  bool direct_read_works() const;
  std::uint32_t checksum(std::int64_t group, const std::uint8_t* content) const;

  std::string path_;
  const Slab& slab_;
  Counters& counters_;
  bool direct_;
  const Checksums checksums_;
  const std::uint32_t identity_checksum_;
  int descriptor_ = -1;
};

}  // namespace flash_llm
