// The activation functions of feed-forward blocks.
#pragma once

namespace flash_llm {

enum class Activation { kNone, kSilu, kGelu, kGeluTanh, kRelu, kRelu2 };

// ArgumentError for a name that is not in the table.
Activation activation_of(const char* name);

}  // namespace flash_llm
