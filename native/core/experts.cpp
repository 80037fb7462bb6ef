// Blocks of which a router has chosen some for each token.
#include <algorithm>
#include <string>
#include <vector>

#include "core/core.hpp"

namespace flash_llm {
namespace {

// All groups of an expert.
void add_groups(const Section& gate_up, std::int64_t expert, std::vector<std::int64_t>& groups) {
  for (std::int64_t local = 0; local < gate_up.stride; ++local) {
    groups.push_back(gate_up.first_group + expert * gate_up.stride + local);
  }
}

// Whether an expert's groups, of a claim from `first` on, have all arrived.
bool ready(const Claim& claim, std::size_t first, std::size_t groups) {
  for (std::size_t i = first; i < first + groups; ++i) {
    if (!claim.ready(i)) {
      return false;
    }
  }
  return true;
}

// Which of these turns comes next: the first, or, where results are kept until all are there, the
// first whose expert has arrived.
template <typename There>
std::size_t next_turn(const std::vector<ExpertUses::Turn>& turns, std::size_t begin,
                      std::size_t end, bool any_order, There there) {
  std::size_t first = end;
  for (std::size_t i = begin; i < end; ++i) {
    if (!turns[i].done) {
      first = std::min(first, i);
      if (!any_order || there(i)) {
        return i;
      }
    }
  }
  return first;
}

}  // namespace

void NeuronCore::experts(int gate_up, int down, Inputs x, const Routing& routing,
                         Activation activation, Outputs out) {
  const std::lock_guard turn_of_call(calls_);
  check_open();
  const Section& first = find(gate_up);
  const Section& second = find(down);
  check_experts(first, second);
  experts_.list(routing, dim_);
  std::vector<ExpertUses::Turn>& turns = experts_.turns();
  const std::size_t groups = static_cast<std::size_t>(first.stride);
  // All at once; where the cache has not the room, half of it is read while the other is computed.
  const std::size_t room = cache_->size() / groups;
  const std::size_t at_once = turns.size() <= room ? room : std::max<std::size_t>(room / 2, 1);
  const auto groups_of = [&](std::size_t begin) {
    std::vector<std::int64_t> wanted;
    for (std::size_t i = begin; i < std::min(turns.size(), begin + at_once); ++i) {
      add_groups(first, turns[i].expert, wanted);
    }
    return wanted;
  };
  std::vector<std::int32_t> slots(groups);
  for (std::size_t begin = 0; begin < turns.size(); begin += at_once) {
    const std::size_t end = std::min(turns.size(), begin + at_once);
    const Claim claim(cache_.get(), gate_up, groups_of(begin));
    if (end < turns.size()) {
      cache_->prefetch(gate_up, groups_of(end), true);
    }
    const auto there = [&](std::size_t i) { return ready(claim, (i - begin) * groups, groups); };
    for (std::size_t left = end - begin; left > 0; --left) {
      const std::size_t next = next_turn(turns, begin, end, x.tokens == 1, there);
      const std::size_t place = (next - begin) * groups;
      const bool waited_for = !there(next);
      for (std::size_t i = 0; i < groups; ++i) {
        slots[i] = claim.wait(place + i);
      }
      const Outputs results = experts_.results(turns[next], x);
      expert(first, second, slots.data(), waited_for, experts_.gathered(turns[next], x), activation,
             results);
      if (x.tokens > 1) {  // and so in order
        experts_.add(turns[next], results.read_only(), out);
      }
      turns[next].done = true;
    }
  }
  for (std::size_t i = 0; x.tokens == 1 && i < turns.size(); ++i) {
    experts_.add(turns[i], experts_.results(turns[i], x).read_only(), out);
  }
}

void NeuronCore::prefetch_experts(int gate_up, int down, const std::int64_t* ids,
                                  std::int64_t count, bool needed) {
  const std::lock_guard turn(calls_);
  check_open();
  const Section& first = find(gate_up);
  check_experts(first, find(down));
  std::vector<std::int64_t> sorted(ids, ids + count);
  std::sort(sorted.begin(), sorted.end());
  std::vector<std::int64_t> wanted;
  for (const std::int64_t expert : sorted) {
    add_groups(first, expert, wanted);
  }
  if (!wanted.empty()) {
    cache_->prefetch(gate_up, wanted, needed);
  }
}

void NeuronCore::expert(const Section& gate_up, const Section& down, const std::int32_t* slots,
                        bool waited_for, Inputs x, Activation activation, Outputs y) {
  const auto activate = [&](const Section& section, const Neurons& neurons, Inputs inputs,
                            Outputs outputs) {
    const PreparedInputs prepared = math_.prepare(section.format, inputs);
    batch_.clear(section.format);
    batch_.waited_for = waited_for;
    for (std::int64_t local = 0; local < section.groups(); ++local) {
      batch_.add(slab_->slot(*slots++), local * section.bundles_per_group,
                 section.bundles_in(local));
    }
    math_.activate(batch_, neurons, prepared, outputs);
  };
  const Outputs h = math_.room(x.tokens, gate_up.bundles);
  activate(gate_up, {2, true, activation}, x, h);
  activate(down, kPlainRows, h.read_only(), y);
}

void NeuronCore::check_experts(const Section& gate_up, const Section& down) const {
  require(down.first_group == gate_up.first_group + gate_up.groups() &&
              down.copies == gate_up.copies && down.stride == gate_up.stride &&
              down.stride == gate_up.groups() + down.groups(),
          "down", down.first_group,
          "a section whose copies follow those of gate_up, and are followed by them");
  if (!cache_) {
    throw ArgumentError("set_cache", "no call", "called before experts are used");
  }
  require(static_cast<std::int64_t>(cache_->size()) >= gate_up.stride, "set_cache",
          static_cast<std::int64_t>(cache_->size()),
          "so many slots as an expert has groups, " + std::to_string(gate_up.stride));
}

}  // namespace flash_llm
