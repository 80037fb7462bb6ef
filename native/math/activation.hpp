// The activation functions of feed-forward blocks.
#pragma once

namespace flash_llm {

enum class Activation { kNone, kSilu, kGelu, kGeluTanh, kRelu, kRelu2, kClampedSwiglu };

// Of clamped SwiGLU: up is kept within this, with 1 added, and gate below it; its sigmoid is steeper.
constexpr float kSwigluLimit = 7;
constexpr float kSwigluSlope = 1.702f;

// ArgumentError for a name that is not in the table.
Activation activation_of(const char* name);

}  // namespace flash_llm
