#include "io/slab.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <limits>
#include <new>

#include "errors.hpp"

namespace flash_llm {

Slab::Slab(std::int32_t slots, std::size_t slot_bytes, bool lock_memory)
    : slot_bytes_(slot_bytes), slots_(slots) {
  const std::size_t mapped_slots = static_cast<std::size_t>(slots) + 1;
  if (mapped_slots > std::numeric_limits<std::ptrdiff_t>::max() / slot_bytes) {
    throw std::bad_alloc();
  }
  bytes_ = mapped_slots * slot_bytes;
  void* mapped = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    throw std::bad_alloc();
  }
  memory_ = static_cast<std::uint8_t*>(mapped);
  // A child process must not copy pages that the device is writing to.
  madvise(memory_, bytes_, MADV_DONTFORK);
  madvise(memory_, bytes_, MADV_HUGEPAGE);
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  for (std::size_t offset = 0; offset < bytes_; offset += page) {
    *static_cast<volatile std::uint8_t*>(memory_ + offset) = 0;
  }
  locked_ = lock_memory && mlock(memory_, bytes_) == 0;
}

Slab::~Slab() { munmap(memory_, bytes_); }

std::int32_t Slab::take(std::int64_t count, const std::string& what) {
  if (count > slots_ - taken_) {
    throw ArgumentError("slots: " + what + " needs " + std::to_string(count) + " of them, " +
                        std::to_string(slots_ - taken_) + " of " + std::to_string(slots_) +
                        " are left");
  }
  const std::int32_t first = taken_;
  taken_ += static_cast<std::int32_t>(count);
  return first;
}

}  // namespace flash_llm
