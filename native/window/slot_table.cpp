#include "window/slot_table.hpp"

namespace flash_llm {

SlotTable::SlotTable(std::int64_t groups, std::int32_t entries, int half_life)
    : table_(static_cast<std::size_t>(groups), -1),
      entries_(static_cast<std::size_t>(entries)),
      links_(entries),
      idle_(groups, entries, half_life, links_) {
  for (std::int32_t index = entries; index-- > 0;) {
    links_.push_newest(free_, index);
  }
}

void SlotTable::turn(int section) {
  if (section <= last_section_) {
    idle_.token();
  }
  last_section_ = section;
}

void SlotTable::claim(std::int32_t index) {
  if (at(index).place == Place::kIdle) {
    idle_.take(index);
  } else if (at(index).place == Place::kExpected) {
    links_.remove(expected_, index);
  }
  at(index).place = Place::kClaimed;
}

std::int32_t SlotTable::admit(std::int64_t group) {
  if (free_.empty()) {
    const std::int32_t yielding = idle_.victim();
    if (yielding < 0) {
      return -1;
    }
    at(yielding).place = Place::kClaimed;
    vacate(yielding);
  }
  const std::int32_t index = links_.pop_newest(free_);
  at(index) = {static_cast<std::int32_t>(group), -1, Place::kClaimed};
  table_[static_cast<std::size_t>(group)] = index;
  return index;
}

void SlotTable::rest(std::int32_t index) { idle(index, true); }

void SlotTable::expect(std::int32_t index, int section) {
  at(index).place = Place::kExpected;
  at(index).section = section;
  links_.push_newest(expected_, index);
}

void SlotTable::vacate(std::int32_t index) {
  claim(index);
  table_[static_cast<std::size_t>(at(index).group)] = -1;
  at(index) = Entry{};
  links_.push_newest(free_, index);
}

void SlotTable::idle(std::int32_t index, bool used) {
  at(index).place = Place::kIdle;
  idle_.add(index, at(index).group, used);
}

}  // namespace flash_llm
