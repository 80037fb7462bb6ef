#include "bindings/replay_bindings.hpp"

#include <pybind11/stl.h>

#include "bindings/array_arguments.hpp"
#include "window/replay.hpp"
#include "window/window_policy.hpp"

namespace flash_llm {
namespace {

// The events of a trace, which point into these arrays.
std::vector<ReplayEvent> events_of(std::int64_t file_groups, std::int32_t slots,
                                   const py::object& sections, const py::object& predicted,
                                   const py::object& ends, const py::object& groups) {
  const auto length_of = [](const char* name, const py::object& array) {
    if (!py::isinstance<py::array>(array) || py::reinterpret_borrow<py::array>(array).ndim() != 1) {
      throw ArgumentError(name, found_text(array), "an array [n]");
    }
    return static_cast<std::int64_t>(py::reinterpret_borrow<py::array>(array).shape(0));
  };
  const std::int64_t events = length_of("sections", sections);
  const std::int64_t total = length_of("groups", groups);
  const auto* section = checked<std::int64_t>("sections", sections, {events});
  const auto* early = checked<std::uint8_t>("predicted", predicted, {events});
  const auto* end = checked<std::int64_t>("ends", ends, {events});
  const auto* group = checked<std::int64_t>("groups", groups, {total});
  require(file_groups >= 1, "file_groups", file_groups, "at least 1");
  require(slots >= 1, "slots", slots, "at least 1");
  for (std::int64_t i = 0; i < total; ++i) {
    require(group[i] >= 0 && group[i] < file_groups, "groups", group[i],
            "between 0 and " + std::to_string(file_groups - 1));
  }
  std::vector<ReplayEvent> list;
  for (std::int64_t i = 0, begin = 0; i < events; begin = end[i++]) {
    require(end[i] >= begin && end[i] <= total, "ends", end[i], "ascending, and within groups");
    list.push_back({static_cast<int>(section[i]), early[i] != 0, group + begin, end[i] - begin});
  }
  return list;
}

py::dict replay_events(const std::string& policy, std::int64_t file_groups, std::int32_t slots,
                       const py::object& sections, const py::object& predicted,
                       const py::object& ends, const py::object& groups) {
  const auto events = events_of(file_groups, slots, sections, predicted, ends, groups);
  const ReplayCounts counts =
      without_interpreter([&] { return replay(policy, file_groups, slots, events); });
  py::dict result;
  result["hits"] = counts.hits;
  result["misses"] = counts.misses;
  result["prefetched"] = counts.prefetched;
  return result;
}

std::uint64_t most_hits_of(std::int64_t file_groups, std::int32_t slots,
                           const py::object& sections, const py::object& predicted,
                           const py::object& ends, const py::object& groups) {
  const auto events = events_of(file_groups, slots, sections, predicted, ends, groups);
  return without_interpreter([&] { return most_hits(file_groups, slots, events); });
}

}  // namespace

void bind_replay(py::module_& module) {
  module.def("replay", &replay_events, py::arg("policy"), py::arg("file_groups"), py::arg("slots"),
             py::arg("sections"), py::arg("predicted"), py::arg("ends"), py::arg("groups"),
             "Runs recorded events through the cache's bookkeeping, without reads. sections int64 "
             "[n]; predicted uint8 [n], 1: prefetched, 0: used; groups int64 [total], ascending "
             "in each event; ends int64 [n]: where an event's groups end. Returns the counts of "
             "hits, misses and prefetched groups.");
  module.def("most_hits", &most_hits_of, py::arg("file_groups"), py::arg("slots"),
             py::arg("sections"), py::arg("predicted"), py::arg("ends"), py::arg("groups"),
             "The hits of Belady's policy on the same events, predictions left out: no policy can "
             "have more.");
  module.def("policy_names", &policy_names);
}

}  // namespace flash_llm
