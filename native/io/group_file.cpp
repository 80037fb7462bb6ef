#include "io/group_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "io/crc32c.hpp"

namespace flash_llm {
namespace {

constexpr std::size_t kChecksumBytes = 4;
constexpr std::size_t kRequestBytes = 1 << 20;

std::string text_of(int error_number) {
  return std::generic_category().message(error_number);
}

template <typename Number>
std::uint32_t checksum_of_number(Number number, std::uint32_t before = 0) {
  std::uint8_t bytes[sizeof number];
  for (std::size_t i = 0; i < sizeof number; ++i) {
    bytes[i] = static_cast<std::uint8_t>(number >> (8 * i));
  }
  return crc32c(bytes, sizeof number, before);
}

std::uint32_t stored_checksum(const std::uint8_t* end) {
  const std::uint8_t* at = end - kChecksumBytes;
  return at[0] | at[1] << 8 | at[2] << 16 | static_cast<std::uint32_t>(at[3]) << 24;
}

}  // namespace

GroupFile::GroupFile(const std::string& path, std::uint64_t identity, bool direct_io,
                     Checksums checksums, const Slab& slab, Counters& counters)
    : path_(path),
      slab_(slab),
      counters_(counters),
      direct_(direct_io),
      checksums_(checksums),
      identity_checksum_(checksum_of_number(identity)) {
  open();
  if (direct_ && !direct_read_works()) {
    ::close(descriptor_);
    direct_ = false;
    open();
  }
}

GroupFile::~GroupFile() { ::close(descriptor_); }

std::size_t GroupFile::request_groups() const {
  return std::clamp<std::size_t>(kRequestBytes / slab_.slot_bytes(), 1, IOV_MAX);
}

void GroupFile::open() {
  const int flags = O_RDONLY | O_CLOEXEC;
  descriptor_ = ::open(path_.c_str(), direct_ ? flags | O_DIRECT : flags);
  if (descriptor_ < 0 && direct_ && errno == EINVAL) {
    direct_ = false;
    descriptor_ = ::open(path_.c_str(), flags);
  }
  if (descriptor_ < 0) {
    throw ReadFault(ReadFault::Kind::kRead, path_ + ": cannot be opened: " + text_of(errno));
  }
  if (!direct_) {
    posix_fadvise(descriptor_, 0, 0, POSIX_FADV_RANDOM);  // nothing read unasked
  }
}

std::int64_t GroupFile::size() const {
  struct stat status {};
  if (fstat(descriptor_, &status) != 0) {
    throw ReadFault(ReadFault::Kind::kRead, path_ + ": cannot be examined: " + text_of(errno));
  }
  return status.st_size;
}

std::int64_t GroupFile::groups() const {
  return size() / static_cast<std::int64_t>(slab_.slot_bytes());
}

void GroupFile::require_groups(std::int64_t groups) const {
  const std::int64_t found = size();
  const std::int64_t group_bytes = static_cast<std::int64_t>(slab_.slot_bytes());
  if (found != groups * group_bytes) {
    throw ReadFault(ReadFault::Kind::kRead,
                    path_ + ": is " + std::to_string(found) + " bytes long, must be " +
                        std::to_string(groups * group_bytes) + " (" + std::to_string(groups) +
                        " groups of " + std::to_string(group_bytes) + " bytes)");
  }
}

bool GroupFile::direct_read_works() const {
  return pread(descriptor_, slab_.slot(0), slab_.slot_bytes(), 0) >= 0 || errno != EINVAL;
}

// What belongs to another place or to another store is as wrong as what is damaged.
std::uint32_t GroupFile::checksum(std::int64_t group, const std::uint8_t* content) const {
  return crc32c(content, slab_.slot_bytes() - kChecksumBytes,
                checksum_of_number(static_cast<std::uint32_t>(group), identity_checksum_));
}

std::optional<ReadFault> GroupFile::verify(const Run& run, std::size_t begin,
                                            std::size_t end) const {
  if (checksums_ == Checksums::kIgnored) {
    return std::nullopt;
  }
  for (std::size_t i = begin; i < end; ++i) {
    if (run.slots[i] == Slab::kDiscard) {
      continue;
    }
    add(counters_.crc_checked, 1);
    const std::uint8_t* group = slab_.slot(run.slots[i]);
    const std::uint32_t stored = stored_checksum(group + slab_.slot_bytes());
    const std::uint32_t computed = checksum(run.first_group + static_cast<std::int64_t>(i), group);
    if (stored != computed && checksums_ == Checksums::kCompared) {
      char text[64];
      std::snprintf(text, sizeof text, ": CRC32C is %08x instead of %08x, twice", computed,
                    stored);
      return ReadFault(ReadFault::Kind::kChecksum, where(run, i) + text + "; damaged, or of another place or store");
    }
  }
  return std::nullopt;
}

void GroupFile::drop_pages(off_t offset, off_t size) const {
  if (!direct_) {
    posix_fadvise(descriptor_, offset, size, POSIX_FADV_DONTNEED);
  }
}

std::string GroupFile::where(const Run& run, std::size_t index) const {
  const std::int64_t group = run.first_group + static_cast<std::int64_t>(index);
  return path_ + ": group " + std::to_string(group) + " (section " + std::to_string(run.section) +
         ", byte " + std::to_string(group * static_cast<std::int64_t>(slab_.slot_bytes())) + ")";
}

}  // namespace flash_llm
