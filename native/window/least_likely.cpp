#include "window/least_likely.hpp"

#include <algorithm>

namespace flash_llm {

LeastLikely::LeastLikely(std::int64_t groups, std::int32_t entries, int half_life,
                         EntryLinks& links)
    : chances_(groups, half_life), links_(links), places_(static_cast<std::size_t>(entries)) {}

void LeastLikely::add(std::int32_t entry, std::int64_t group, bool used) {
  const int level = used ? chances_.used(group) : chances_.of(group);
  places_[static_cast<std::size_t>(entry)] = {chances_.now(), level};
  links_.push_newest(current_.at(level), entry);
  current_.least = std::min(current_.least, level);
}

void LeastLikely::take(std::int32_t entry) {
  const Place& place = places_[static_cast<std::size_t>(entry)];
  const std::int32_t age = chances_.now() - place.token;
  if (age == 0) {
    links_.remove(current_.at(place.level), entry);
  } else {
    links_.remove(before_.at(std::max(place.level - (age - 1), 0)), entry);
  }
}

std::int32_t LeastLikely::victim() {
  const int before = before_.find_least(chances_.levels());
  const int current = current_.find_least(chances_.levels());
  if (std::min(before, current) == chances_.levels()) {
    return -1;
  }
  return links_.pop_newest(current <= before ? current_.at(current) : before_.at(before));
}

void LeastLikely::token() {
  chances_.token();
  // What was not used in this token falls a level, then what was used joins it.
  for (int level = 1; level < chances_.levels(); ++level) {
    links_.append(before_.at(level - 1), before_.at(level));
  }
  for (int level = 0; level < chances_.levels(); ++level) {
    links_.append(before_.at(level), current_.at(level));
  }
  before_.least = current_.least = 0;
}

int LeastLikely::Levels::find_least(int levels) {
  while (least < levels && at(least).empty()) {
    ++least;
  }
  return least;
}

}  // namespace flash_llm
