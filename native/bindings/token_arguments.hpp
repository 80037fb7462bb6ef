// Arrays of some tokens' vectors.
#pragma once

#include <cstdint>
#include <string>

#include "bindings/array_arguments.hpp"
#include "math/token_rows.hpp"

namespace flash_llm {

// How many tokens an array [S, width] has; `checked` then makes sure of the rest.
inline std::int64_t tokens_of(const char* name, const py::handle& object, std::int64_t width) {
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

}  // namespace flash_llm
