// The Python module flash_llm_ros._native: checks arrays, releases the interpreter, translates errors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "bindings/array_arguments.hpp"
#include "bindings/replay_bindings.hpp"
#include "core/core.hpp"
#include "io/crc32c.hpp"
#include "io/measure_reads.hpp"
#include "io/uring.hpp"
#include "window/read_plan.hpp"
#include "window/window_policy.hpp"

namespace flash_llm {
namespace {

// How many tokens an array [S, width] has; `checked` then makes sure of the rest.
std::int64_t tokens_of(const char* name, const py::handle& object, std::int64_t width) {
  if (py::isinstance<py::array>(object)) {
    const py::array array = py::reinterpret_borrow<py::array>(object);
    if (array.ndim() == 2 && array.shape(0) >= 1) {
      return array.shape(0);
    }
  }
  throw ArgumentError(name, found_text(object),
                      "a float32 array [S, " + std::to_string(width) + "] with S >= 1");
}

struct Pair {
  Inputs inputs;
  Outputs outputs;

  Pair(const char* in_name, const py::handle& in, std::int64_t in_width, const char* out_name,
       const py::handle& out, std::int64_t out_width) {
    const std::int64_t tokens = tokens_of(in_name, in, in_width);
    inputs = {checked<float>(in_name, in, {tokens, in_width}), tokens, in_width};
    outputs = {checked<float>(out_name, out, {tokens, out_width}, true), tokens, out_width};
  }
};

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
  Neurons neurons{section.rows, section.rows == 3, activation_of(activation)};
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
                                      int threads, const std::string& reader, int reads_in_flight,
                                      bool direct_io, bool lock_memory) {
  const CoreOptions options{
      py::module_::import("os").attr("fspath")(path).cast<std::string>(), group_bytes, groups, dim,
      slots, threads, reader, reads_in_flight, direct_io, lock_memory};
  return without_interpreter([&] { return std::make_unique<NeuronCore>(options); });
}

void rows_dot(NeuronCore& core, int section, const py::object& x, const py::object& out) {
  const Section found = section_of(core, section, 1);
  const Pair pair("x", x, core.dim(), "out", out, found.bundles);
  without_interpreter([&] { core.rows_dot(section, pair.inputs, pair.outputs); });
}

void gate_up(NeuronCore& core, int section, const py::object& x, const py::object& h,
             const std::string& activation) {
  const Section found = section_of(core, section, 2);
  const Activation act = activation_of(activation);
  const Pair pair("x", x, core.dim(), "h", h, found.bundles);
  without_interpreter([&] { core.gate_up(section, pair.inputs, act, pair.outputs); });
}

void add_rows(NeuronCore& core, int section, const py::object& h, const py::object& out) {
  const Section found = section_of(core, section, 1);
  const Pair pair("h", h, found.bundles, "out", out, core.dim());
  without_interpreter([&] { core.add_rows(section, pair.inputs, pair.outputs); });
}

void bundled(NeuronCore& core, int section, const py::object& x, const py::object& out,
             const std::string& activation, const py::object& bias, float threshold) {
  const Neurons neurons =
      neurons_of(section_of(core, section, 2, 3), activation, bias, threshold);
  const Pair pair("x", x, core.dim(), "out", out, core.dim());
  without_interpreter([&] { core.bundled(section, pair.inputs, neurons, pair.outputs); });
}

void add_rows_sparse(NeuronCore& core, int section, const py::object& h, const py::object& active,
                     const py::object& out, bool stream) {
  const Section found = section_of(core, section, 1);
  const float* h_data = checked<float>("h", h, {found.bundles});
  const std::uint8_t* active_data = checked<std::uint8_t>("active", active, {found.bundles});
  float* out_data = checked<float>("out", out, {core.dim()}, true);
  without_interpreter([&] { core.add_rows_sparse(section, h_data, active_data, out_data, stream); });
}

void bundled_sparse(NeuronCore& core, int section, const py::object& x, const py::object& active,
                    const py::object& out, const std::string& activation, const py::object& h_out,
                    const py::object& bias, float threshold) {
  const Section found = section_of(core, section, 2, 3);
  const Neurons neurons = neurons_of(found, activation, bias, threshold);
  const float* x_data = checked<float>("x", x, {core.dim()});
  const std::uint8_t* active_data = checked<std::uint8_t>("active", active, {found.bundles});
  float* out_data = checked<float>("out", out, {core.dim()}, true);
  float* h_data =
      h_out.is_none() ? nullptr : checked<float>("h_out", h_out, {found.bundles}, true);
  without_interpreter(
      [&] { core.bundled_sparse(section, x_data, active_data, out_data, neurons, h_data); });
}

void prefetch(NeuronCore& core, int section, const py::object& wanted, bool needed) {
  const Section found = section_of(core, section, 1, 3);
  const std::uint8_t* data = checked<std::uint8_t>("wanted", wanted, {found.bundles});
  without_interpreter([&] { core.prefetch(section, data, needed); });
}

std::int64_t fetch(NeuronCore& core, int section, const py::object& active,
                   const py::object& importance, double deadline) {
  const Section found = section_of(core, section, 1, 3);
  std::uint8_t* flags = checked<std::uint8_t>("active", active, {found.bundles}, true);
  const float* weights = checked<float>("importance", importance, {found.bundles});
  require(std::all_of(weights, weights + found.bundles, [](float w) { return w == w; }),
          "importance", 0, "free of NaN");
  if (!(deadline >= 0 && deadline < 1e9)) {
    throw ArgumentError("deadline", std::to_string(deadline),
                        "monotonic seconds, below 1e9");
  }
  const Deadline moment{std::chrono::nanoseconds(static_cast<std::int64_t>(deadline * 1e9))};
  return without_interpreter([&] { return core.fetch(section, flags, weights, moment); });
}

void read_rows(NeuronCore& core, int section, const py::object& ids, const py::object& out) {
  const Section found = section_of(core, section, 1);
  if (!py::isinstance<py::array>(ids) || py::reinterpret_borrow<py::array>(ids).ndim() != 1) {
    throw ArgumentError("ids", found_text(ids), "an int64 array [k]");
  }
  const std::int64_t count = py::reinterpret_borrow<py::array>(ids).shape(0);
  const std::int64_t* id_data = checked<std::int64_t>("ids", ids, {count});
  float* out_data = checked<float>("out", out, {count, core.dim()}, true);
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
  result["left_out"] = counters.left_out.load();
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
  module.doc() = "The neuron core in C++; flash_llm_ros.engine.numpy_core is its NumPy twin.";
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

  bind_replay(module);
  module.def("plan_reads", &planned, py::arg("groups"), py::arg("request_groups"),
             py::arg("largest_groups"),
             "The same as flash_llm_ros.engine.numpy_read_plan.plan_reads.");

  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  py::class_<NeuronCore>(module, "NeuronCore",
                         "Same interface as flash_llm_ros.engine.numpy_core.NeuronCore, which "
                         "documents it. Calls release the interpreter and take turns.")
      .def(py::init(&make_core), py::arg("path"), py::arg("group_bytes"), py::arg("groups"),
           py::arg("dim"), py::arg("slots"), py::kw_only(),
           py::arg("threads") = 1, py::arg("reader") = "auto", py::arg("reads_in_flight") = 32,
           py::arg("direct_io") = true,
           py::arg("lock_memory") = true)
      .def_property_readonly("direct", &NeuronCore::direct)
      .def_property_readonly("locked", &NeuronCore::locked)
      .def_property_readonly("reader", &NeuronCore::reader_name)
      .def_property_readonly("scratch_bytes", &NeuronCore::scratch_bytes)
      .def_property_readonly("kernels", &NeuronCore::kernels_name)
      .def("add_section", &NeuronCore::add_section, py::arg("first_group"), py::arg("bundles"),
           py::arg("bundles_per_group"), py::arg("rows"), py::arg("codec"), unlocked)
      .def("pin", &NeuronCore::pin, py::arg("section"), py::arg("groups"), unlocked)
      .def("set_ring", &NeuronCore::set_ring, py::arg("chunk_groups"), py::arg("chunks"), unlocked)
      .def("set_cache", &NeuronCore::set_cache, py::arg("slots"),
           py::arg("policy") = default_policy(), unlocked)
      .def("set_stream_order", &NeuronCore::set_stream_order, py::arg("sections"), unlocked)
      .def("set_read_costs", &NeuronCore::set_read_costs, py::arg("request_seconds"),
           py::arg("byte_seconds"), py::arg("largest_bytes"), unlocked)
      .def("limit_threads", &NeuronCore::limit_threads, py::arg("most"), unlocked)
      .def("rows_dot", &rows_dot, py::arg("section"), py::arg("x"), py::arg("out"))
      .def("gate_up", &gate_up, py::arg("section"), py::arg("x"), py::arg("h"),
           py::arg("activation"))
      .def("add_rows", &add_rows, py::arg("section"), py::arg("h"), py::arg("out"))
      .def("bundled", &bundled, py::arg("section"), py::arg("x"), py::arg("out"),
           py::arg("activation"), py::arg("bias") = py::none(), py::arg("threshold") = 0.0F)
      .def("add_rows_sparse", &add_rows_sparse, py::arg("section"), py::arg("h"),
           py::arg("active"), py::arg("out"), py::arg("stream") = false)
      .def("bundled_sparse", &bundled_sparse, py::arg("section"), py::arg("x"), py::arg("active"),
           py::arg("out"), py::arg("activation"), py::arg("h_out") = py::none(),
           py::arg("bias") = py::none(), py::arg("threshold") = 0.0F)
      .def("prefetch", &prefetch, py::arg("section"), py::arg("wanted"), py::arg("needed") = false)
      .def("fetch", &fetch, py::arg("section"), py::arg("active"), py::arg("importance"),
           py::arg("deadline"))
      .def("read_rows", &read_rows, py::arg("section"), py::arg("ids"), py::arg("out"))
      .def("stats", &stats)
      .def("close", &NeuronCore::close, unlocked);
}

}  // namespace flash_llm
