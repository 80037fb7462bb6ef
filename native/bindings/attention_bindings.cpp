#include "bindings/attention_bindings.hpp"

#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "bindings/array_arguments.hpp"
#include "bindings/token_arguments.hpp"

namespace flash_llm {
namespace {

AttentionShape shape_of(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim,
                        std::int64_t context, std::int64_t tokens, int kv_bits,
                        const std::vector<double>& frequencies) {
  for (const auto& [name, value] : {std::pair("heads", heads), {"kv_heads", kv_heads},
                                    {"head_dim", head_dim}, {"context", context},
                                    {"tokens", tokens}}) {
    require(value >= 1 && value < (std::int64_t{1} << 31), name, value, "a positive integer");
  }
  require(heads % kv_heads == 0, "kv_heads", kv_heads, "a divisor of heads");
  require(head_dim % 2 == 0, "head_dim", head_dim, "even");
  require(kv_bits == 8 || kv_bits == 16, "kv_bits", kv_bits, "8 or 16");
  require(2 * static_cast<std::int64_t>(frequencies.size()) <= head_dim, "frequencies",
          static_cast<std::int64_t>(frequencies.size()), "at most half of head_dim");
  return {heads, kv_heads, head_dim, context, tokens, kv_bits, frequencies};
}

void set_attention(NeuronCore& core, const AttentionShape& shape, float eps) {
  without_interpreter([&] { core.set_attention(shape, eps); });
}

py::tuple cache_shape(const AttentionShape& shape) {
  return py::make_tuple(shape.kv_heads, shape.cache_tiles(), shape.tiles().bytes());
}

std::vector<float> values_of(const char* name, const py::object& array, std::int64_t count,
                             bool needed) {
  if (array.is_none() && !needed) {
    return {};
  }
  const float* const data = checked<float>(name, array, {count});
  return {data, data + count};
}

int add_attention(NeuronCore& core, int qkv, int o, const py::object& norm,
                  const py::object& feed_forward_norm, const py::object& qkv_bias,
                  const py::object& o_bias, const py::object& cache) {
  const AttentionShape shape = without_interpreter([&] { return core.attention_shape(); });
  const std::vector<std::int64_t> cache_shape{shape.kv_heads, shape.cache_tiles(),
                                              static_cast<std::int64_t>(shape.tiles().bytes())};
  AttentionLayer layer{
      qkv, o, values_of("norm", norm, core.dim(), true),
      values_of("feed_forward_norm", feed_forward_norm, core.dim(), true),
      values_of("qkv_bias", qkv_bias, shape.qkv_width(), false),
      values_of("o_bias", o_bias, core.dim(), false),
      checked<std::uint8_t>("cache", cache, cache_shape, true)};
  return without_interpreter([&] { return core.add_attention(std::move(layer)); });
}

void attention(NeuronCore& core, int layer, const py::object& hidden, std::int64_t position,
               const py::object& residual, const py::object& feed_forward_input) {
  const Pair pair("hidden", hidden, core.dim(), "residual", residual, core.dim());
  const std::int64_t tokens = pair.inputs.tokens;
  const Outputs input{
      checked<float>("feed_forward_input", feed_forward_input, {tokens, core.dim()}, true), tokens,
      core.dim()};
  without_interpreter(
      [&] { core.attention(layer, pair.inputs, position, pair.outputs, input); });
}

void rms_norm(NeuronCore& core, const py::object& x, const py::object& weights,
              const py::object& out) {
  const Pair pair("x", x, core.dim(), "out", out, core.dim());
  const float* const data = checked<float>("weights", weights, {core.dim()});
  without_interpreter([&] { core.rms_normed(pair.inputs, data, pair.outputs); });
}

}  // namespace

void bind_attention_shape(py::module_& module) {
  py::class_<AttentionShape>(
      module, "AttentionShape",
      "The attention of all layers, of `tokens` at most at a time, with a cache of numbers of 8 or 16 "
      "bits for a context. Numbers i and i + len(frequencies) of a head are turned by the token's "
      "position times frequencies[i].")
      .def(py::init(&shape_of), py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"),
           py::arg("context"), py::arg("tokens"), py::arg("kv_bits"), py::arg("frequencies"))
      .def("cache_shape", &cache_shape,
           "Of a layer's cache, uint8 [kv_heads, tiles, bytes].")
      .def_property_readonly_static(
          "tile_tokens", [](const py::object&) { return kTileTokens; },
          "How many tokens' keys and values a tile holds.")
      .def("scratch_bytes", &Attention::bytes, py::arg("dim"), py::arg("threads"),
           "What a core with rows of `dim` values allocates for it.");
}

void bind_attention(py::class_<NeuronCore>& core) {
  core
      .def("set_attention", &set_attention, py::arg("shape"), py::arg("eps"),
           "The attention of all layers and the number that norms add; once.")
      .def("add_attention", &add_attention, py::arg("qkv"), py::arg("o"), py::arg("norm"),
           py::arg("feed_forward_norm"), py::arg("qkv_bias"), py::arg("o_bias"), py::arg("cache"),
           py::keep_alive<1, 8>(),
           "A layer's sections of single rows, norms float32 [dim], biases float32 or None, and KV "
           "cache uint8 [shape.cache_shape()]; returns its number.")
      .def("attention", &attention, py::arg("layer"), py::arg("hidden"), py::arg("position"),
           py::arg("residual"), py::arg("feed_forward_input"),
           "residual = hidden + attention of normed hidden, feed_forward_input = residual normed, "
           "all float32 [S, dim], of tokens from `position` on, whose keys and values go to the "
           "cache.")
      .def("rms_norm", &rms_norm, py::arg("x"), py::arg("weights"), py::arg("out"),
           "out = x normed, float32 [S, dim].");
}

}  // namespace flash_llm
