// What is computed and read with a core.
#include "core/core.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace flash_llm {

void NeuronCore::rows_dot(int section, Inputs x, Outputs out, bool add) {
  const std::lock_guard turn(calls_);
  dots(section, x, add ? kAddedRows : kPlainRows, out);
}

void NeuronCore::gate_up(int section, Inputs x, Activation activation, Outputs h) {
  const std::lock_guard turn(calls_);
  dots(section, x, {2, true, activation}, h);
}

void NeuronCore::gate_up_down(int gate_up, int down, Inputs x, Activation activation, Outputs h,
                              Outputs out) {
  const std::lock_guard turn(calls_);
  dots(gate_up, x, {2, true, activation}, h);
  dots(down, h.read_only(), kAddedRows, out);
}

void NeuronCore::dots(int section, Inputs x, const Neurons& neurons, Outputs out) {
  const PreparedInputs prepared = prepare(section, x);
  // A batch notes its groups alone where it takes all of their bundles.
  const std::int64_t most = BatchMath::most_bundles(1) * find(section).bundles_per_group;
  walk(section).for_each_batch(section, most, false, [&](const Batch& batch) {
    math_.activate(batch, neurons, prepared, out.columns_from(batch.number_at(0)));
  });
}

void NeuronCore::bundled(int section, Inputs x, const Neurons& neurons, Outputs out) {
  const std::lock_guard turn(calls_);
  const PreparedInputs prepared = prepare(section, x);
  begin_sum(section, out);
  const std::int64_t most = BatchMath::most_bundles(x.tokens);
  walk(section).for_each_batch(section, most, true, [&](const Batch& batch) {
    const Outputs h = math_.room(x.tokens, batch.size());
    math_.activate(batch, neurons, prepared, h);
    math_.add_last_rows(batch, neurons.bundle_rows, h.read_only());
  });
  math_.end_sum();
}

void NeuronCore::bundled_sparse(int section, const float* x, const std::uint8_t* active,
                                float* out, const Neurons& neurons) {
  const std::lock_guard turn(calls_);
  const PreparedInputs prepared = prepare(section, {x, 1, dim_});
  begin_sum(section, {out, 1, dim_});
  walk(section).for_active_batches(section, active, [&](const Batch& batch) {
    const Outputs h = math_.room(1, batch.size());
    math_.activate(batch, neurons, prepared, h);
    math_.add_last_rows(batch, neurons.bundle_rows, h.read_only());
  });
  math_.end_sum();
}

void NeuronCore::prefetch(int section, const std::uint8_t* wanted, bool needed) {
  const std::lock_guard turn(calls_);
  check_open();
  const Section& found = find(section);
  std::vector<std::int64_t> groups = found.flagged_groups(wanted, found.pinned);
  for (std::int64_t& group : groups) {
    group += found.first_group;
  }
  if (cache_ && !groups.empty()) {
    cache_->prefetch(section, groups, needed);
  }
}

void NeuronCore::read_rows(int section, const std::int64_t* ids, std::int64_t count, float* out) {
  const std::lock_guard turn(calls_);
  check_open();
  const Section& found = find(section);
  // By group, so that each is fetched once however often its rows are wanted.
  std::vector<std::int64_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  const auto group_of = [&](std::int64_t i) { return ids[i] / found.bundles_per_group; };
  std::sort(order.begin(), order.end(),
            [&](std::int64_t a, std::int64_t b) { return group_of(a) < group_of(b); });
  std::vector<std::int64_t> locals;
  for (const std::int64_t i : order) {
    if (locals.empty() || locals.back() != group_of(i)) {
      locals.push_back(group_of(i));
    }
  }
  auto next = order.begin();
  const auto decode = [&](std::size_t index, const std::uint8_t* group) {
    for (; next != order.end() && group_of(*next) == locals[index]; ++next) {
      const std::size_t within = static_cast<std::size_t>(ids[*next] % found.bundles_per_group);
      math_.decode_row(found.format, group + within * found.format.row_bytes(),
                       out + *next * found.format.dim);
    }
  };
  walk(section).for_some_groups(section, locals, decode, [] {});
}

PreparedInputs NeuronCore::prepare(int section, Inputs x) {
  check_open();
  return math_.prepare(find(section).format, x);
}

void NeuronCore::begin_sum(int section, Outputs out) {
  check_open();
  math_.begin_sum(find(section).bundles, out);
}

GroupWalk NeuronCore::walk(int section) {
  check_open();
  find(section);
  return {sections_, *slab_, counters_, batch_, ring_.get(), cache_.get()};
}

Section& NeuronCore::find(int section) {
  require(section >= 0 && static_cast<std::size_t>(section) < sections_.size(), "section", section,
          "one of the " + std::to_string(sections_.size()) + " that were added");
  return sections_[static_cast<std::size_t>(section)];
}

void NeuronCore::check_open() const {
  if (!slab_) {
    throw std::runtime_error("the neuron core is closed");
  }
}

}  // namespace flash_llm
