// The activation functions of feed-forward blocks.
#pragma once

#include <cstdint>
#include <string>

namespace flash_llm {

// z [count] becomes its activation. `threshold`: up to where the kinds of ReLU are 0; others do not
// use it. Null: z as it is.
using Activation = void (*)(float* z, std::int64_t count, float threshold);

// ArgumentError for a name that is not in the table.
Activation activation_of(const std::string& name);

}  // namespace flash_llm
