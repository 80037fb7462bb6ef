// The attention of the core, for Python.
#pragma once

#include <pybind11/pybind11.h>

#include "core/core.hpp"

namespace flash_llm {

void bind_attention_shape(pybind11::module_& module);
// The calls of NeuronCore.
void bind_attention(pybind11::class_<NeuronCore>& core);

}  // namespace flash_llm
