// Going over the groups of a section, wherever in DRAM they lie or are read to.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "errors.hpp"
#include "io/counters.hpp"
#include "io/slab.hpp"
#include "math/batch.hpp"
#include "math/batch_math.hpp"
#include "window/group_cache.hpp"
#include "window/sections.hpp"
#include "window/stream_ring.hpp"

namespace flash_llm {

// Made for one call; ring and cache may be missing where all groups are pinned.
class GroupWalk {
 public:
  GroupWalk(const Sections& sections, const Slab& slab, Counters& counters, Batch& batch,
            StreamRing* ring, GroupCache* cache)
      : sections_(sections),
        slab_(slab),
        counters_(counters),
        batch_(batch),
        ring_(ring),
        cache_(cache) {}

  // use(batch), for batches of at most so many bundles that make up the section: in their order, or
  // pinned and streamed groups by turns, so that no ring is full for long and no device idle.
  template <typename Use>
  void for_each_batch(int section, std::int64_t most, bool in_order, Use use) {
    const Section& found = sections_[static_cast<std::size_t>(section)];
    const std::int64_t groups = found.groups();
    if (found.pinned < groups && !ring_) {
      throw ArgumentError("set_ring", "no call", "called before unpinned groups are used");
    }
    add(counters_.hits, static_cast<std::uint64_t>(found.pinned));
    add(counters_.misses, static_cast<std::uint64_t>(groups - found.pinned));
    const auto use_groups = [&](std::int64_t local, std::int64_t count, std::int64_t slot,
                                bool waited_for) {
      for (const std::int64_t end = local + count; local < end;) {
        batch_.clear(found.format);
        batch_.waited_for = waited_for;
        for (; local < end; ++local, ++slot) {
          const std::int64_t bundles = found.bundles_in(local);
          if (batch_.size() > 0 && batch_.size() + bundles > most) {
            break;
          }
          batch_.add(slab_.slot(static_cast<std::int32_t>(slot)),
                     local * found.bundles_per_group, bundles);
        }
        use(batch_);
      }
    };
    std::int64_t used = 0;
    const auto use_pinned = [&](std::int64_t count) {
      // Where reads are behind, they need the processor more than a second thread on what is pinned.
      use_groups(used, count, found.pin_slot + used, found.pinned < groups && ring_->behind());
      used += count;
    };
    if (in_order || found.pinned == groups) {
      use_pinned(found.pinned);
    }
    for (std::int64_t local = found.pinned; local < groups;) {
      const std::int64_t chunks = parts(groups - local, ring_->chunk_groups());
      const std::int64_t share = parts(found.pinned - used, chunks);
      if (share >= ring_->chunk_groups() || chunks == 1) {
        use_pinned(share);
      }
      const StreamRing::Chunk chunk = ring_->acquire(section, local);
      use_groups(local, chunk.groups, chunk.slot, ring_->behind());
      ring_->release();
      local += chunk.groups;
    }
  }

  // use(batch) for the active bundles, in batches of as many as are in DRAM.
  template <typename Use>
  void for_active_batches(int section, const std::uint8_t* active, Use use) {
    const Section& found = sections_[static_cast<std::size_t>(section)];
    const std::vector<std::int64_t> locals = found.flagged_groups(active, 0);
    const auto use_batch = [&] {
      if (batch_.size() > 0) {
        use(batch_);
        batch_.clear(found.format);
      }
    };
    batch_.clear(found.format);
    for_some_groups(
        section, locals,
        [&](std::size_t index, const std::uint8_t* group) {
          const std::int64_t local = locals[index];
          const std::int64_t bundles = found.bundles_in(local);
          if (batch_.size() + bundles > BatchMath::most_bundles(1)) {
            use_batch();
          }
          const std::int64_t first = local * found.bundles_per_group;
          batch_.add_flagged(group, first, bundles, active + first);
        },
        use_batch);
  }

  // use(index within `locals`, group in DRAM), for these ascending groups of the section.
  // before_gap() comes before groups used so far may go and before waiting for the next one.
  template <typename Use, typename BeforeGap>
  void for_some_groups(int section, const std::vector<std::int64_t>& locals, Use use,
                       BeforeGap before_gap) {
    const Section& found = sections_[static_cast<std::size_t>(section)];
    const std::size_t cached_at_once = cache_ ? cache_->size() : 0;
    std::vector<std::int64_t> cached;
    for (std::size_t begin = 0; begin < locals.size();) {
      cached.clear();
      std::size_t end = begin;
      for (; end < locals.size(); ++end) {
        if (locals[end] >= found.pinned) {
          if (cached.size() == cached_at_once) {
            break;
          }
          cached.push_back(found.first_group + locals[end]);
        }
      }
      if (begin == end) {
        throw ArgumentError("set_cache", "no call", "called before unpinned groups are used");
      }
      add(counters_.hits, end - begin - cached.size());
      const Claim claim(cache_, section, cached);
      std::size_t claimed = 0;
      for (; begin < end; ++begin) {
        const std::int64_t local = locals[begin];
        std::int32_t slot = found.pin_slot + static_cast<std::int32_t>(local);
        if (local >= found.pinned) {
          if (!claim.ready(claimed)) {
            before_gap();
          }
          slot = claim.wait(claimed++);
        }
        use(begin, slab_.slot(slot));
      }
      before_gap();
    }
  }

 private:
  static std::int64_t parts(std::int64_t whole, std::int64_t part) {
    return (whole + part - 1) / part;
  }

  const Sections& sections_;
  const Slab& slab_;
  Counters& counters_;
  Batch& batch_;
  StreamRing* const ring_;
  GroupCache* const cache_;
};

}  // namespace flash_llm
