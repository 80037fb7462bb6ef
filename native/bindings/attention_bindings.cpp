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
                        const std::vector<std::pair<std::vector<double>, float>>& turns,
                        float soft_cap) {
  for (const auto& [name, value] : {std::pair("heads", heads), {"kv_heads", kv_heads},
                                    {"head_dim", head_dim}, {"context", context},
                                    {"tokens", tokens}}) {
    require(value >= 1 && value < (std::int64_t{1} << 31), name, value, "a positive integer");
  }
  require(heads % kv_heads == 0, "kv_heads", kv_heads, "a divisor of heads");
  require(head_dim % 2 == 0, "head_dim", head_dim, "even");
  require(kv_bits == 8 || kv_bits == 16, "kv_bits", kv_bits, "8 or 16");
  require(soft_cap >= 0, "soft_cap", soft_cap, "a number from 0 on");
  AttentionShape shape{heads, kv_heads, head_dim, context, tokens, kv_bits, {}, soft_cap};
  for (const auto& [frequencies, scale] : turns) {
    shape.rotations.push_back({frequencies, scale});
    const auto pairs = static_cast<std::int64_t>(frequencies.size());
    require(2 * pairs <= head_dim && pairs == shape.pairs(), "rotations", pairs,
            "of as many frequencies each, at most half of head_dim");
  }
  return shape;
}

void set_attention(NeuronCore& core, const AttentionShape& shape, float eps) {
  without_interpreter([&] { core.set_attention(shape, eps); });
}

void require_window(std::int64_t window) {
  require(window >= 0 && window < (std::int64_t{1} << 31), "window", window,
          "a number of tokens, or 0");
}

py::tuple cache_shape(const AttentionShape& shape, std::int64_t window) {
  require_window(window);
  return py::make_tuple(shape.kv_heads, shape.cache_tiles(window), shape.tiles().bytes());
}

std::vector<float> values_of(const char* name, const py::object& array, std::int64_t count) {
  if (array.is_none()) {
    return {};
  }
  const float* const data = checked<float>(name, array, {count});
  return {data, data + count};
}

int add_attention(NeuronCore& core, int qkv, int o, const py::object& cache, int rotation,
                  std::int64_t window, const py::object& norm, const py::object& feed_forward_norm,
                  const py::object& qkv_bias, const py::object& o_bias,
                  const py::object& query_norm, const py::object& key_norm,
                  const py::object& output_norm, const py::object& sinks, bool norm_heads) {
  const AttentionShape shape = without_interpreter([&] { return core.attention_shape(); });
  require(rotation >= -1 && rotation < static_cast<int>(shape.rotations.size()), "rotation", rotation,
          "-1 or one of the shape's " + std::to_string(shape.rotations.size()));
  require_window(window);
  const std::vector<std::int64_t> cache_shape{shape.kv_heads, shape.cache_tiles(window),
                                              static_cast<std::int64_t>(shape.tiles().bytes())};
  require(query_norm.is_none() == key_norm.is_none(), "key_norm", !key_norm.is_none(),
          "given where query_norm is");
  const std::int64_t kv_width = shape.kv_heads * shape.head_dim;
  AttentionLayer layer{
      qkv, o, {rotation, window}, values_of("norm", norm, core.dim()),
      values_of("query_norm", query_norm, norm_heads ? shape.head_dim : shape.query_width()),
      values_of("key_norm", key_norm, norm_heads ? shape.head_dim : kv_width),
      values_of("output_norm", output_norm, core.dim()),
      values_of("feed_forward_norm", feed_forward_norm, core.dim()),
      values_of("qkv_bias", qkv_bias, shape.qkv_width()), values_of("o_bias", o_bias, core.dim()),
      values_of("sinks", sinks, shape.heads),
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

void attended(NeuronCore& core, const py::object& out) {
  const AttentionShape shape = without_interpreter([&] { return core.attention_shape(); });
  const std::int64_t width = shape.query_width(), tokens = tokens_of("out", out, width);
  const Outputs found{checked<float>("out", out, {tokens, width}, true), tokens, width};
  without_interpreter([&] { core.attended(found); });
}

void add_rms_norm(NeuronCore& core, const py::object& x, const py::object& weights,
                  const py::object& out) {
  const Pair pair("x", x, core.dim(), "out", out, core.dim());
  const float* const data = checked<float>("weights", weights, {core.dim()});
  without_interpreter([&] { core.add_rms_normed(pair.inputs, data, pair.outputs); });
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
      "bits for a context. `rotations` are pairs (frequencies, scale): numbers i and i + "
      "len(frequencies) of a head are turned by the token's position times frequencies[i], and "
      "multiplied by scale. Scores are soft_cap * tanh(score / soft_cap), or for 0 as they are.")
      .def(py::init(&shape_of), py::arg("heads"), py::arg("kv_heads"), py::arg("head_dim"),
           py::arg("context"), py::arg("tokens"), py::arg("kv_bits"), py::arg("rotations"),
           py::arg("soft_cap") = 0.0f)
      .def("cache_shape", &cache_shape, py::arg("window") = 0,
           "Of the cache, uint8 [kv_heads, tiles, bytes], of a layer whose tokens see so many others, "
           "themselves included; 0: all. Token t lies in tile t // tile_tokens % tiles.")
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
      .def("add_attention", &add_attention, py::arg("qkv"), py::arg("o"), py::arg("cache"),
           py::kw_only(), py::arg("rotation") = 0, py::arg("window") = 0,
           py::arg("norm") = py::none(), py::arg("feed_forward_norm") = py::none(),
           py::arg("qkv_bias") = py::none(), py::arg("o_bias") = py::none(),
           py::arg("query_norm") = py::none(), py::arg("key_norm") = py::none(),
           py::arg("output_norm") = py::none(), py::arg("sinks") = py::none(),
           py::arg("norm_heads") = true,
           py::keep_alive<1, 4>(),
           "A layer's sections of single rows and KV cache uint8 [shape.cache_shape(window)]; returns "
           "its number. `rotation`: which of the shape's, or -1; `window`: how many tokens a token "
           "sees, itself included; 0: all. Norms and biases are float32, those of queries and keys of "
           "each head or, without norm_heads, of their width; sinks, of each head: a score that shares "
           "in the softmax and adds nothing. None: none.")
      .def("attention", &attention, py::arg("layer"), py::arg("hidden"), py::arg("position"),
           py::arg("residual"), py::arg("feed_forward_input"),
           "residual = hidden + attention of normed hidden, normed where there is an output norm, "
           "feed_forward_input = residual normed, all float32 [S, dim], of tokens from `position` "
           "on, whose keys and values go to the cache.")
      .def("attended", &attended, py::arg("out"),
           "What the last call of attention multiplied with o, of its first tokens, float32 [S, query "
           "width].")
      .def("rms_norm", &rms_norm, py::arg("x"), py::arg("weights"), py::arg("out"),
           "out = x normed, float32 [S, dim].")
      .def("add_rms_norm", &add_rms_norm, py::arg("x"), py::arg("weights"), py::arg("out"),
           "out += x normed, float32 [S, dim].");
}

}  // namespace flash_llm
