// The one big allocation: equal slots that never move.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace flash_llm {

class Slab {
 public:
  // One more slot: for what is read along with wanted groups and thrown away.
  static constexpr std::int32_t kDiscard = -1;

  // Maps, touches and (if asked and allowed) locks the memory; std::bad_alloc if there is none.
  Slab(std::int32_t slots, std::size_t slot_bytes, bool lock_memory);
  ~Slab();
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;

  std::uint8_t* slot(std::int32_t index) const {
    return memory_ + static_cast<std::size_t>(index == kDiscard ? slots_ : index) * slot_bytes_;
  }
  std::size_t slot_bytes() const { return slot_bytes_; }
  bool locked() const { return locked_; }

  // The first of `count` neighbouring slots that nobody has; ArgumentError if too few are left.
  std::int32_t take(std::int64_t count, const std::string& what);
  // Undoes the latest take.
  void give_back(std::int64_t count) { taken_ -= static_cast<std::int32_t>(count); }

 private:
  std::uint8_t* memory_;
  std::size_t bytes_;
  std::size_t slot_bytes_;
  std::int32_t slots_;
  std::int32_t taken_ = 0;
  bool locked_ = false;
};

}  // namespace flash_llm
