// What all bindings need: arrays that are checked, and calls without the interpreter's lock.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "errors.hpp"

namespace flash_llm {

namespace py = pybind11;

template <typename Value>
const char* type_name();
template <>
inline const char* type_name<float>() { return "float32"; }
template <>
inline const char* type_name<std::uint8_t>() { return "uint8"; }
template <>
inline const char* type_name<std::int64_t>() { return "int64"; }

inline std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t size : shape) {
    text += (text.empty() ? "" : ", ") + std::to_string(size);
  }
  return "[" + text + "]";
}

inline std::string found_text(const py::handle& object) {
  if (!py::isinstance<py::array>(object)) {
    return py::type::of(object).attr("__name__").cast<std::string>();
  }
  const py::array array = py::reinterpret_borrow<py::array>(object);
  const std::vector<std::int64_t> shape(array.shape(), array.shape() + array.ndim());
  return py::str(array.dtype()).cast<std::string>() + " " + shape_text(shape);
}

// Data of a C-contiguous array of exactly this type and shape; ArgumentError otherwise.
template <typename Value>
Value* checked(const char* name, const py::handle& object, const std::vector<std::int64_t>& shape,
               bool writable = false) {
  if (py::isinstance<py::array_t<Value, py::array::c_style>>(object)) {
    const py::array array = py::reinterpret_borrow<py::array>(object);
    if (std::vector<std::int64_t>(array.shape(), array.shape() + array.ndim()) == shape &&
        (array.writeable() || !writable)) {
      return static_cast<Value*>(const_cast<void*>(array.data()));
    }
  }
  throw ArgumentError(name, found_text(object),
                      std::string("a C-contiguous ") + (writable ? "writable " : "") +
                          type_name<Value>() + " array " + shape_text(shape));
}

template <typename Work>
auto without_interpreter(Work work) {
  const py::gil_scoped_release released;
  return work();
}

}  // namespace flash_llm
