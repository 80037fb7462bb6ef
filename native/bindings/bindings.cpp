// The Python module flash_llm_ros._native: checks arrays, releases the interpreter, translates errors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/array_arguments.hpp"
#include "bindings/attention_bindings.hpp"
#include "bindings/token_arguments.hpp"
#include "core/core.hpp"
#include "io/crc32c.hpp"
#include "io/measure_reads.hpp"
#include "io/uring.hpp"
#include "window/read_plan.hpp"

namespace flash_llm {
namespace {

// Waiting for another thread's call while holding the interpreter could stop that thread.
Section section_of(NeuronCore& core, int section, int least_rows, int most_rows) {
  return without_interpreter([&] { return core.section(section, least_rows, most_rows); });
}

Section section_of(NeuronCore& core, int section, int rows) {
  return section_of(core, section, rows, rows);
}

// Bundles of three rows are gated, those of two are not and may have a bias.
Neurons neurons_of(const Section& section, const std::string& activation, const py::object& bias,
                   float threshold) {
  Neurons neurons{section.rows, section.rows == 3, activation_of(activation.c_str())};
  if (!(std::isfinite(threshold) && threshold >= 0)) {
    throw ArgumentError("threshold", std::to_string(threshold), "a number from 0 on");
  }
  neurons.threshold = threshold;
  if (!bias.is_none()) {
    if (neurons.gated) {
      throw ArgumentError("bias", found_text(bias), "None for gated bundles (of 3 rows)");
    }
    neurons.bias = checked<float>("bias", bias, {section.bundles});
  }
  return neurons;
}

std::unique_ptr<NeuronCore> make_core(const py::object& path, std::int64_t group_bytes,
                                      std::int64_t groups, std::int64_t dim, std::int64_t slots,
                                      std::uint64_t identity, int threads, const std::string& reader, int reads_in_flight,
                                      bool direct_io, bool lock_memory) {
  const CoreOptions options{
      py::module_::import("os").attr("fspath")(path).cast<std::string>(), group_bytes, groups, dim,
      slots, identity, threads, reader, reads_in_flight, direct_io, lock_memory};
  return without_interpreter([&] { return std::make_unique<NeuronCore>(options); });
}

int add_section(NeuronCore& core, std::int64_t first_group, std::int64_t bundles,
                std::int64_t bundles_per_group, int rows, const std::string& codec,
                std::optional<std::int64_t> dim, std::int64_t copies, std::int64_t stride,
                bool biased) {
  return without_interpreter([&] {
    return core.add_section(first_group, bundles, bundles_per_group, rows, codec,
                            dim.value_or(core.dim()), copies, stride, biased);
  });
}

void rows_dot(NeuronCore& core, int section, const py::object& x, const py::object& out, bool add) {
  const Section found = section_of(core, section, 1);
  const Pair pair("x", x, found.format.dim, "out", out, found.bundles);
  without_interpreter([&] { core.rows_dot(section, pair.inputs, pair.outputs, add); });
}

void gate_up(NeuronCore& core, int section, const py::object& x, const py::object& h,
             const std::string& activation) {
  const Section found = section_of(core, section, 2);
  const Activation act = activation_of(activation.c_str());
  const Pair pair("x", x, core.dim(), "h", h, found.bundles);
  without_interpreter([&] { core.gate_up(section, pair.inputs, act, pair.outputs); });
}

void gate_up_down(NeuronCore& core, int gate_up, int down, const py::object& x, const py::object& h,
                  const py::object& out, const std::string& activation) {
  const Section first = section_of(core, gate_up, 2);
  const Section second = section_of(core, down, 1);
  const Activation act = activation_of(activation.c_str());
  require(second.format.dim == first.bundles, "down", down,
          "a section of rows of " + std::to_string(first.bundles) + " values");
  const Pair pair("x", x, core.dim(), "h", h, first.bundles);
  const std::int64_t tokens = pair.inputs.tokens;
  const Outputs sums{checked<float>("out", out, {tokens, second.bundles}, true), tokens,
                     second.bundles};
  without_interpreter(
      [&] { core.gate_up_down(gate_up, down, pair.inputs, act, pair.outputs, sums); });
}

void bundled(NeuronCore& core, int section, const py::object& x, const py::object& out,
             const std::string& activation, const py::object& bias, float threshold) {
  const Neurons neurons =
      neurons_of(section_of(core, section, 2, 3), activation, bias, threshold);
  const Pair pair("x", x, core.dim(), "out", out, core.dim());
  without_interpreter([&] { core.bundled(section, pair.inputs, neurons, pair.outputs); });
}

void bundled_sparse(NeuronCore& core, int section, const py::object& x, const py::object& active,
                    const py::object& out, const std::string& activation, const py::object& bias,
                    float threshold) {
  const Section found = section_of(core, section, 2, 3);
  const Neurons neurons = neurons_of(found, activation, bias, threshold);
  const float* x_data = checked<float>("x", x, {core.dim()});
  const std::uint8_t* active_data = checked<std::uint8_t>("active", active, {found.bundles});
  float* out_data = checked<float>("out", out, {core.dim()}, true);
  without_interpreter([&] { core.bundled_sparse(section, x_data, active_data, out_data, neurons); });
}

// How many there are; `checked` then makes sure of the rest.
std::int64_t ids_of(const py::object& ids) {
  if (!py::isinstance<py::array>(ids) || py::reinterpret_borrow<py::array>(ids).ndim() != 1) {
    throw ArgumentError("ids", found_text(ids), "an int64 array [k]");
  }
  return py::reinterpret_borrow<py::array>(ids).shape(0);
}

void require_experts(const Section& section, const std::int64_t* ids, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    require(ids[i] >= 0 && ids[i] < section.copies, "ids", ids[i],
            "between 0 and " + std::to_string(section.copies - 1));
  }
}

void experts(NeuronCore& core, int gate_up, int down, const py::object& x, const py::object& ids,
             const py::object& weights, const py::object& out, const std::string& activation) {
  const Section first = section_of(core, gate_up, 2);
  const Section second = section_of(core, down, 1);
  const Activation act = activation_of(activation.c_str());
  require(second.format.dim == first.bundles && second.bundles == core.dim(), "down", down,
          "a section of " + std::to_string(core.dim()) + " rows of " +
              std::to_string(first.bundles) + " values");
  const Pair pair("x", x, core.dim(), "out", out, core.dim());
  const std::int64_t tokens = pair.inputs.tokens;
  if (!py::isinstance<py::array>(ids) || py::reinterpret_borrow<py::array>(ids).ndim() != 2) {
    throw ArgumentError("ids", found_text(ids),
                        "an int64 array [" + std::to_string(tokens) + ", k]");
  }
  const std::int64_t each = py::reinterpret_borrow<py::array>(ids).shape(1);
  const Routing routing{checked<std::int64_t>("ids", ids, {tokens, each}),
                        checked<float>("weights", weights, {tokens, each}), tokens, each};
  require_experts(first, routing.ids, tokens * each);
  without_interpreter([&] { core.experts(gate_up, down, pair.inputs, routing, act, pair.outputs); });
}

void prefetch_experts(NeuronCore& core, int gate_up, int down, const py::object& ids,
                      bool needed) {
  const Section first = section_of(core, gate_up, 2);
  section_of(core, down, 1);
  const std::int64_t count = ids_of(ids);
  const std::int64_t* data = checked<std::int64_t>("ids", ids, {count});
  require_experts(first, data, count);
  without_interpreter([&] { core.prefetch_experts(gate_up, down, data, count, needed); });
}

void prefetch(NeuronCore& core, int section, const py::object& wanted, bool needed) {
  const Section found = section_of(core, section, 1, 3);
  const std::uint8_t* data = checked<std::uint8_t>("wanted", wanted, {found.bundles});
  without_interpreter([&] { core.prefetch(section, data, needed); });
}

void read_rows(NeuronCore& core, int section, const py::object& ids, const py::object& out) {
  const Section found = section_of(core, section, 1);
  const std::int64_t count = ids_of(ids);
  const std::int64_t* id_data = checked<std::int64_t>("ids", ids, {count});
  float* out_data = checked<float>("out", out, {count, found.format.dim}, true);
  for (std::int64_t i = 0; i < count; ++i) {
    require(id_data[i] >= 0 && id_data[i] < found.bundles, "ids", id_data[i],
            "between 0 and " + std::to_string(found.bundles - 1));
  }
  without_interpreter([&] { core.read_rows(section, id_data, count, out_data); });
}

py::dict stats(const NeuronCore& core) {
  const Counters& counters = core.counters();
  py::dict result;
  result["flash_bytes"] = counters.flash_bytes.load();
  result["flash_reads"] = counters.flash_reads.load();
  result["gap_groups"] = counters.gap_groups.load();
  result["retries"] = counters.retries.load();
  result["crc_checked"] = counters.crc_checked.load();
  result["hits"] = counters.hits.load();
  result["misses"] = counters.misses.load();
  result["prefetched"] = counters.prefetched.load();
  result["prefetch_used"] = counters.prefetch_used.load();
  result["read_ns"] = counters.reading.nanoseconds();
  result["wait_ns"] = counters.wait_ns.load();
  result["claim_ns"] = counters.claim_ns.load();
  return result;
}

std::uint32_t checksum(const py::buffer& buffer, bool by_table) {
  const py::buffer_info info = buffer.request();
  if (!PyBuffer_IsContiguous(info.view(), 'C')) {
    throw ArgumentError("buffer", "a strided view", "contiguous");
  }
  const auto* data = static_cast<const std::uint8_t*>(info.ptr);
  const std::size_t size = static_cast<std::size_t>(info.size * info.itemsize);
  return without_interpreter([&] { return by_table ? crc32c_by_table(data, size) : crc32c(data, size); });
}

py::dict measured_reads(const py::object& path, std::int64_t bytes, int in_flight, double seconds,
                        const std::string& pattern, const std::string& reader, bool checksum) {
  if (pattern != "random" && pattern != "sequential") {
    throw ArgumentError("pattern", "'" + pattern + "'", "one of random, sequential");
  }
  const std::string name = py::module_::import("os").attr("fspath")(path).cast<std::string>();
  const ReadMeasurement found = without_interpreter([&] {
    return measure_reads(name, bytes, in_flight, seconds,
                         pattern == "random" ? Pattern::kRandom : Pattern::kSequential, reader,
                         checksum);
  });
  py::dict result;
  result["reads"] = found.reads;
  result["bytes"] = found.bytes;
  result["seconds"] = found.seconds;
  result["direct"] = found.direct;
  result["reader"] = found.reader;
  return result;
}

std::vector<std::pair<std::size_t, std::size_t>> planned(const std::vector<std::int64_t>& groups,
                                                         double request_groups,
                                                         std::size_t largest_groups) {
  require(largest_groups >= 1, "largest_groups", 0, "at least 1");
  std::vector<std::pair<std::size_t, std::size_t>> spans;
  for (const PlannedRead& read : plan_reads(groups, {request_groups, largest_groups})) {
    spans.emplace_back(read.begin, read.end);
  }
  return spans;
}

std::size_t bookkeeping_bytes(std::int64_t groups, std::int64_t cache_slots) {
  require(groups >= 1, "groups", groups, "at least 1");
  require(cache_slots >= 0, "cache_slots", cache_slots, "at least 0");
  return GroupCache::bookkeeping_bytes(static_cast<std::size_t>(groups),
                                       static_cast<std::size_t>(cache_slots));
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) {
      std::rethrow_exception(pointer);
    }
  } catch (const ReadFault& fault) {
    const char* name =
        fault.kind == ReadFault::Kind::kRead ? "ReadFailedError" : "ChecksumError";
    const py::object type = py::module_::import("flash_llm_ros.store.errors").attr(name);
    PyErr_SetObject(type.ptr(), type(fault.what()).ptr());
  } catch (const UringRefused& refused) {
    const py::object type =
        py::module_::import("flash_llm_ros.store.errors").attr("ReaderUnavailableError");
    PyErr_SetObject(type.ptr(), type(refused.what()).ptr());
  }
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Groups of neurons in flash and in DRAM, and what is computed on them.";
  py::register_exception_translator(&translate);
  module.attr("STORE_FORMAT") = kStoreFormat;
  module.def("crc32c", &checksum, py::arg("buffer"), py::kw_only(),
             py::arg("by_table") = false,
             "CRC32C (Castagnoli) of a contiguous buffer's bytes; by_table: without the "
             "processor's instruction.");
  module.def("measure_reads", &measured_reads, py::arg("path"), py::arg("bytes"),
             py::arg("in_flight"), py::arg("seconds"), py::arg("pattern"),
             py::arg("reader") = "auto", py::kw_only(), py::arg("checksum") = true,
             "Reads `bytes` at a time, `in_flight` of them at once, for so many seconds, 'random' "
             "or 'sequential', by the reader 'auto', 'io_uring' or 'threads', with direct I/O "
             "where the file system has it. checksum: each read's CRC32C is computed, as for a "
             "store, but not compared, so that any file will do. Returns a dict: reads, bytes, "
             "seconds (what passed), direct, reader (which one ran). ValueError for a wrong "
             "argument, ReadFailedError for the file, ReaderUnavailableError for an io_uring that "
             "is not to be had.");
  module.def("bookkeeping_bytes", &bookkeeping_bytes, py::arg("groups"), py::arg("cache_slots"),
             "What a core of a file of so many groups allocates beside its slab to keep account of "
             "so many cache slots.");
  bind_attention_shape(module);
  module.def("plan_reads", &planned, py::arg("groups"), py::arg("request_groups"),
             py::arg("largest_groups"),
             "Spans [begin, end) of these ascending groups, each read by one request with all that "
             "lies between, at least cost: a request costs as much as `request_groups` more groups, "
             "and has at most `largest_groups`, gaps included.");

  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  py::class_<NeuronCore> core(
      module, "NeuronCore",
      "`path` holds `groups` groups of `group_bytes`; rows have `dim` values; `slots` groups fit in "
      "the slab; `identity` is the store's, which its groups' checksums hold. `threads` compute, the caller's included; results are the same bytes for any "
      "number. Calls release the interpreter and take turns. They raise ValueError for a wrong "
      "argument, ReadFailedError and ChecksumError (after one retry) for the file, MemoryError, and "
      "RuntimeError once closed. Arrays of a failed call hold unspecified values; the core itself "
      "stays usable.");
  bind_attention(core);
  core.def(py::init(&make_core), py::arg("path"), py::arg("group_bytes"), py::arg("groups"),
           py::arg("dim"), py::arg("slots"), py::kw_only(), py::arg("identity") = 0,
           py::arg("threads") = 1, py::arg("reader") = "auto", py::arg("reads_in_flight") = 32, py::arg("direct_io") = true,
           py::arg("lock_memory") = true)
      .def_property_readonly("direct", &NeuronCore::direct, "Whether reads bypass the page cache.")
      .def_property_readonly("locked", &NeuronCore::locked, "Whether the slab is locked in DRAM.")
      .def_property_readonly("reader", &NeuronCore::reader_name, "'io_uring' or 'threads'.")
      .def_property_readonly("scratch_bytes", &NeuronCore::scratch_bytes,
                             "Bytes beside the slab that computing needs.")
      .def_property_readonly("kernels", &NeuronCore::kernels_name,
                             "Which arithmetic runs, by its instruction set.")
      .def("add_section", &add_section, py::arg("first_group"), py::arg("bundles"),
           py::arg("bundles_per_group"), py::arg("rows"), py::arg("codec"),
           py::arg("dim") = py::none(), py::arg("copies") = 1, py::arg("stride") = 0,
           py::arg("biased") = false,
           "Registers consecutive groups of bundles of `rows` rows in a codec; returns an id. Single "
           "rows may have another `dim` than the core. The `copies` of a layer's experts begin "
           "`stride` groups apart. biased: each row ends with a float32 that is added to its product.")
      .def("pin", &NeuronCore::pin, py::arg("section"), py::arg("groups"), unlocked,
           "Loads the section's first groups into slots for good; once per section.")
      .def("set_ring", &NeuronCore::set_ring, py::arg("chunk_groups"), py::arg("chunks"), unlocked,
           "Reserves `chunks` runs of `chunk_groups` slots for streaming; once.")
      .def("set_cache", &NeuronCore::set_cache, py::arg("slots"), py::arg("half_life") = 4, unlocked,
           "Reserves slots for groups read one by one; once. The least likely to be needed yields; "
           "a use counts half after `half_life` tokens.")
      .def("set_stream_order", &NeuronCore::set_stream_order, py::arg("sections"), unlocked,
           "The cyclic order in which sections will be streamed; reading ahead begins at once.")
      .def("set_read_costs", &NeuronCore::set_read_costs, py::arg("request_seconds"),
           py::arg("byte_seconds"), py::arg("largest_bytes"), unlocked,
           "Plans scattered reads for a device: time of a request, of each byte, longest request. A "
           "gap between missing groups is read where that costs less than another request. Without "
           "this call only neighbours are read together.")
      .def("limit_threads", &NeuronCore::limit_threads, py::arg("most"), unlocked,
           "Computes with at most so many threads from now on.")
      .def("rows_dot", &rows_dot, py::arg("section"), py::arg("x"), py::arg("out"), py::kw_only(),
           py::arg("add") = false,
           "out float32 [S, bundles] = x float32 [S, dim] @ W.T for a section of single rows; add: "
           "out += that.")
      .def("gate_up", &gate_up, py::arg("section"), py::arg("x"), py::arg("h"),
           py::arg("activation"),
           "h float32 [S, bundles] = act(x @ gate.T) * (x @ up.T); activation: a name of activation.cpp's.")
      .def("gate_up_down", &gate_up_down, py::arg("gate_up"), py::arg("down"), py::arg("x"),
           py::arg("h"), py::arg("out"), py::arg("activation"),
           "gate_up, then out float32 [S, bundles of down] += h @ W.T of the section down, whose rows "
           "have a value for each bundle of gate_up.")
      .def("bundled", &bundled, py::arg("section"), py::arg("x"), py::arg("out"),
           py::arg("activation"), py::arg("bias") = py::none(), py::arg("threshold") = 0.0F,
           "out float32 [S, dim] += h @ down, summed in bundle order. Bundles of three rows: h = "
           "act(x @ gate.T) * (x @ up.T). Of two rows: h = act(x @ up.T + bias), bias float32 "
           "[bundles] or None for 0. threshold: the kinds of relu are 0 up to there.")
      .def("bundled_sparse", &bundled_sparse, py::arg("section"), py::arg("x"), py::arg("active"),
           py::arg("out"), py::arg("activation"), py::arg("bias") = py::none(),
           py::arg("threshold") = 0.0F,
           "The same for one token, x and out [dim], and the bundles whose uint8 in active "
           "[bundles] is not 0; only groups with one of them are read.")
      .def("experts", &experts, py::arg("gate_up"), py::arg("down"), py::arg("x"), py::arg("ids"),
           py::arg("weights"), py::arg("out"), py::arg("activation"),
           "out float32 [S, dim] += the sum of weights [S, k] times what the experts ids, int64 [S, "
           "k], make of x [S, dim]: act(x @ gate.T) * (x @ up.T) @ down.T of their copies of both "
           "sections (clamped_swiglu: times 1 + (x @ up.T) within its limit). Added in the order of the experts, whichever are there first.")
      .def("prefetch", &prefetch, py::arg("section"), py::arg("wanted"), py::arg("needed") = false,
           "Starts reads of the groups with a bundle whose uint8 in wanted [bundles] is not 0, as "
           "far as idle slots are left; failed reads are forgotten. needed: the section's next call "
           "is for these, so they are as urgent, and misses to it.")
      .def("prefetch_experts", &prefetch_experts, py::arg("gate_up"), py::arg("down"),
           py::arg("ids"), py::arg("needed") = false,
           "The same for all groups of the experts ids, int64 [k].")
      .def("read_rows", &read_rows, py::arg("section"), py::arg("ids"), py::arg("out"),
           "out float32 [k, dim] = these rows of a section of single rows; ids int64 [k].")
      .def("stats", &stats, "A dict of what happened since the core was made: counts, and ns.")
      .def("close", &NeuronCore::close, unlocked,
           "Ends all threads and gives the memory back; only the properties and stats() remain.");
}

}  // namespace flash_llm
