#include "window/window_policy.hpp"

#include <algorithm>
#include <utility>

#include "errors.hpp"
#include "window/entry_lists.hpp"
#include "window/use_chances.hpp"
#include "window/use_counts.hpp"

namespace flash_llm {
namespace {

// The least recently used group yields; what was only predicted counts as used.
class LeastRecent : public WindowPolicy {
 public:
  explicit LeastRecent(std::int32_t entries) : links_(entries) {}
  void add(std::int32_t entry, std::int64_t, bool) override { links_.push_newest(order_, entry); }
  void take(std::int32_t entry) override { links_.remove(order_, entry); }
  std::int32_t victim() override {
    const std::int32_t entry = order_.oldest;
    if (entry >= 0) {
      links_.remove(order_, entry);
    }
    return entry;
  }

 private:
  EntryLinks links_;
  EntryList order_;
};

// The paper's window of k tokens: a group that the last k tokens did not need yields, the oldest
// first. When there is none the newest yields: layers take turns, so it is needed again last.
class SlidingWindow : public WindowPolicy {
 public:
  SlidingWindow(std::int32_t entries, std::int64_t tokens)
      : links_(entries), stamps_(static_cast<std::size_t>(entries)), tokens_(tokens) {}
  void add(std::int32_t entry, std::int64_t, bool used) override {
    stamps_[static_cast<std::size_t>(entry)] = used ? now_ : -tokens_ - 1;
    used ? links_.push_newest(order_, entry) : links_.push_oldest(order_, entry);
  }
  void take(std::int32_t entry) override { links_.remove(order_, entry); }
  std::int32_t victim() override {
    if (order_.empty()) {
      return -1;
    }
    const bool outside = stamps_[static_cast<std::size_t>(order_.oldest)] < now_ - tokens_;
    const std::int32_t entry = outside ? order_.oldest : order_.newest;
    links_.remove(order_, entry);
    return entry;
  }
  void token() override { ++now_; }

 private:
  EntryLinks links_;
  EntryList order_;
  std::vector<std::int64_t> stamps_;  // token of the latest use
  const std::int64_t tokens_;
  std::int64_t now_ = 0;
};

// The least frequently used group yields; among equals the newest, which is needed again last.
class LeastFrequent : public WindowPolicy {
 public:
  LeastFrequent(std::int32_t entries, std::int64_t groups, std::int64_t half_life)
      : counts_(groups, half_life), order_(entries) {}
  void add(std::int32_t entry, std::int64_t group, bool used) override {
    order_.add(entry, used ? counts_.used(group) : counts_.of(group));
  }
  void take(std::int32_t entry) override { order_.take(entry); }
  std::int32_t victim() override {
    const std::int32_t entry = order_.least();
    if (entry >= 0) {
      order_.take(entry);
    }
    return entry;
  }
  void token() override {
    if (counts_.token()) {
      order_.halve();
    }
  }

 private:
  UseCounts counts_;
  CountOrder order_;
};

// Half of the entries keep the most frequently used groups, the rest are least recently used.
class HotSet : public WindowPolicy {
 public:
  HotSet(std::int32_t entries, std::int64_t groups, std::int64_t half_life)
      : counts_(groups, half_life),
        hot_(entries),
        links_(entries),
        is_hot_(static_cast<std::size_t>(entries)),
        most_hot_(entries / 2) {}
  void add(std::int32_t entry, std::int64_t group, bool used) override {
    const int count = used ? counts_.used(group) : counts_.of(group);
    if (hot_size_ == most_hot_ && most_hot_ > 0 && count > hot_.least_count()) {
      const std::int32_t cooler = hot_.least();
      take(cooler);
      links_.push_newest(rest_, cooler);
    }
    is_hot_[static_cast<std::size_t>(entry)] = hot_size_ < most_hot_;
    if (hot_size_ < most_hot_) {
      hot_.add(entry, count);
      ++hot_size_;
    } else {
      links_.push_newest(rest_, entry);
    }
  }
  void take(std::int32_t entry) override {
    char& hot = is_hot_[static_cast<std::size_t>(entry)];
    if (hot) {
      hot_.take(entry);
      --hot_size_;
    } else {
      links_.remove(rest_, entry);
    }
    hot = false;
  }
  std::int32_t victim() override {
    const std::int32_t entry = rest_.empty() ? hot_.least() : rest_.oldest;
    if (entry >= 0) {
      take(entry);
    }
    return entry;
  }
  void token() override {
    if (counts_.token()) {
      hot_.halve();
    }
  }

 private:
  UseCounts counts_;
  CountOrder hot_;
  EntryLinks links_;
  EntryList rest_;
  std::vector<char> is_hot_;
  const std::int32_t most_hot_;
  std::int32_t hot_size_ = 0;
};

// The group that is least likely to be needed at its section's next turn yields. Among equals the
// newest: its section's next turn is the furthest away.
class LeastLikely : public WindowPolicy {
 public:
  LeastLikely(std::int32_t entries, std::int64_t groups, std::int64_t half_life)
      : chances_(groups, half_life),
        links_(entries),
        places_(static_cast<std::size_t>(entries)),
        lists_{std::vector<EntryList>(static_cast<std::size_t>(chances_.levels())),
               std::vector<EntryList>(static_cast<std::size_t>(chances_.levels()))} {}
  void add(std::int32_t entry, std::int64_t group, bool used) override {
    const int level = used ? chances_.used(group) : chances_.of(group);
    places_[static_cast<std::size_t>(entry)] = {now_, level};
    links_.push_newest(list(1, level), entry);
    least_[1] = std::min(least_[1], level);
  }
  void take(std::int32_t entry) override {
    const Place& place = places_[static_cast<std::size_t>(entry)];
    if (place.token == now_) {
      links_.remove(list(1, place.level), entry);
    } else {
      const std::int64_t fallen = now_ - place.token - 1;
      links_.remove(list(0, static_cast<int>(std::max<std::int64_t>(place.level - fallen, 0))),
                    entry);
    }
  }
  std::int32_t victim() override {
    const int before = least(0);
    const int current = least(1);
    if (std::min(before, current) == chances_.levels()) {
      return -1;
    }
    EntryList& from = current <= before ? list(1, current) : list(0, before);
    const std::int32_t entry = from.newest;
    links_.remove(from, entry);
    return entry;
  }
  void token() override {
    chances_.token();
    ++now_;
    // What was not used in this token falls a level, then what was used joins it.
    for (int level = 1; level < chances_.levels(); ++level) {
      links_.append(list(0, level - 1), list(0, level));
    }
    for (int level = 0; level < chances_.levels(); ++level) {
      links_.append(list(0, level), list(1, level));
    }
    least_[0] = least_[1] = 0;
  }

 private:
  struct Place {
    std::int64_t token = 0;
    int level = 0;
  };
  EntryList& list(int current, int level) {
    return lists_[current][static_cast<std::size_t>(level)];
  }
  int least(int current) {
    int& level = least_[current];
    while (level < chances_.levels() && list(current, level).empty()) {
      ++level;
    }
    return level;
  }

  UseChances chances_;
  EntryLinks links_;
  std::vector<Place> places_;
  std::vector<EntryList> lists_[2];  // by level: of tokens before; of this token
  int least_[2] = {0, 0};            // no entry is on a lower level
  std::int64_t now_ = 0;
};

// Segmented LRU: a group used twice moves to a protected list of four fifths of the entries.
class Segmented : public WindowPolicy {
 public:
  explicit Segmented(std::int32_t entries)
      : links_(entries),
        place_(static_cast<std::size_t>(entries), Place::kNew),
        most_protected_(entries * 4LL / 5) {}
  void add(std::int32_t entry, std::int64_t, bool used) override {
    Place& place = place_[static_cast<std::size_t>(entry)];
    if (place == Place::kNew || !used || most_protected_ == 0) {
      place = Place::kTrial;
      links_.push_newest(trial_, entry);
      return;
    }
    place = Place::kProtected;
    links_.push_newest(protected_, entry);
    if (++protected_size_ > most_protected_) {
      const std::int32_t oldest = protected_.oldest;
      take(oldest);
      place_[static_cast<std::size_t>(oldest)] = Place::kTrial;
      links_.push_newest(trial_, oldest);
    }
  }
  void take(std::int32_t entry) override {
    const bool guarded = place_[static_cast<std::size_t>(entry)] == Place::kProtected;
    links_.remove(guarded ? protected_ : trial_, entry);
    protected_size_ -= guarded;
  }
  std::int32_t victim() override {
    const std::int32_t entry = trial_.empty() ? protected_.oldest : trial_.oldest;
    if (entry >= 0) {
      take(entry);
      place_[static_cast<std::size_t>(entry)] = Place::kNew;
    }
    return entry;
  }

 private:
  enum class Place : char { kNew, kTrial, kProtected };
  EntryLinks links_;
  EntryList trial_;
  EntryList protected_;
  std::vector<Place> place_;
  const std::int64_t most_protected_;
  std::int64_t protected_size_ = 0;
};

// Any idle group yields, by a fixed sequence of pseudo-random numbers (xorshift).
class Arbitrary : public WindowPolicy {
 public:
  explicit Arbitrary(std::int32_t entries) : position_(static_cast<std::size_t>(entries)) {
    idle_.reserve(position_.size());
  }
  void add(std::int32_t entry, std::int64_t, bool) override {
    position_[static_cast<std::size_t>(entry)] = idle_.size();
    idle_.push_back(entry);
  }
  void take(std::int32_t entry) override {
    const std::size_t position = position_[static_cast<std::size_t>(entry)];
    idle_[position] = idle_.back();
    position_[static_cast<std::size_t>(idle_[position])] = position;
    idle_.pop_back();
  }
  std::int32_t victim() override {
    if (idle_.empty()) {
      return -1;
    }
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    const std::int32_t entry = idle_[state_ % idle_.size()];
    take(entry);
    return entry;
  }

 private:
  std::vector<std::int32_t> idle_;
  std::vector<std::size_t> position_;
  std::uint64_t state_ = 88172645463325252u;
};

struct Parsed {
  std::string name;
  std::int64_t number;
};

Parsed parse(const std::string& text) {
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos) {
    return {text, 0};
  }
  const std::string digits = text.substr(colon + 1);
  const bool right = !digits.empty() && digits.size() <= 6 &&
                     digits.find_first_not_of("0123456789") == std::string::npos;
  if (!right || std::stoll(digits) < 1) {
    throw ArgumentError("policy", "'" + text + "'",
                        "a name and a number of tokens from 1 to 999999, as sliding_window:4");
  }
  return {text.substr(0, colon), std::stoll(digits)};
}

}  // namespace

const std::vector<std::string>& policy_names() {
  static const std::vector<std::string> names{"least_recent", "segmented",      "arbitrary",
                                              "least_likely", "sliding_window", "least_frequent",
                                              "hot_set"};
  return names;
}

std::unique_ptr<WindowPolicy> make_policy(const std::string& name, std::int32_t entries,
                                          std::int64_t groups) {
  const Parsed wanted = parse(name);
  const auto tokens = [&](std::int64_t usual) { return wanted.number ? wanted.number : usual; };
  if (wanted.name == "sliding_window") {
    return std::make_unique<SlidingWindow>(entries, tokens(4));
  }
  if (wanted.name == "least_frequent") {
    return std::make_unique<LeastFrequent>(entries, groups, tokens(32));
  }
  if (wanted.name == "hot_set") {
    return std::make_unique<HotSet>(entries, groups, tokens(32));
  }
  if (wanted.name == "least_likely") {
    return std::make_unique<LeastLikely>(entries, groups, tokens(4));
  }
  if (wanted.number == 0) {
    if (wanted.name == "least_recent") {
      return std::make_unique<LeastRecent>(entries);
    }
    if (wanted.name == "segmented") {
      return std::make_unique<Segmented>(entries);
    }
    if (wanted.name == "arbitrary") {
      return std::make_unique<Arbitrary>(entries);
    }
  }
  std::string known;
  for (const std::string& one : policy_names()) {
    known += (known.empty() ? "" : ", ") + one;
  }
  throw ArgumentError("policy", "'" + name + "'",
                      "one of " + known + "; the last four may have a number of tokens, as "
                      "sliding_window:4");
}

}  // namespace flash_llm
