// Doubly linked lists of entries that share one array of links: constant time, no allocation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace flash_llm {

// One list; an entry is in at most one list of the EntryLinks that it is used with.
struct EntryList {
  std::int32_t oldest = -1;
  std::int32_t newest = -1;
  bool empty() const { return oldest < 0; }
};

class EntryLinks {
 public:
  explicit EntryLinks(std::int32_t entries) : links_(static_cast<std::size_t>(entries)) {}
  static constexpr std::size_t bytes(std::size_t entries) { return entries * sizeof(Link); }

  std::int32_t newer(std::int32_t index) const { return at(index).newer; }

  void push_newest(EntryList& list, std::int32_t index) {
    at(index) = {list.newest, -1};
    (list.newest >= 0 ? at(list.newest).newer : list.oldest) = index;
    list.newest = index;
  }
  void remove(EntryList& list, std::int32_t index) {
    const Link link = at(index);
    (link.older >= 0 ? at(link.older).newer : list.oldest) = link.newer;
    (link.newer >= 0 ? at(link.newer).older : list.newest) = link.older;
  }
  // The newest entry of a list that is not empty, which it leaves.
  std::int32_t pop_newest(EntryList& list) {
    const std::int32_t index = list.newest;
    remove(list, index);
    return index;
  }
  // Moves all of `from` to the new end of `list`.
  void append(EntryList& list, EntryList& from) {
    if (from.empty()) {
      return;
    }
    at(from.oldest).older = list.newest;
    (list.newest >= 0 ? at(list.newest).newer : list.oldest) = from.oldest;
    list.newest = from.newest;
    from = EntryList{};
  }

 private:
  struct Link {
    std::int32_t older = -1;
    std::int32_t newer = -1;
  };
  Link& at(std::int32_t index) { return links_[static_cast<std::size_t>(index)]; }
  const Link& at(std::int32_t index) const { return links_[static_cast<std::size_t>(index)]; }

  std::vector<Link> links_;
};

}  // namespace flash_llm
