// The replay of traces in Python.
#pragma once

#include <pybind11/pybind11.h>

namespace flash_llm {

void bind_replay(pybind11::module_& module);

}  // namespace flash_llm
