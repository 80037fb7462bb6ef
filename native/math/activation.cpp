#include "math/activation.hpp"

#include <algorithm>
#include <cmath>

#include "errors.hpp"

namespace flash_llm {
namespace {

#include "math/exponentials_body.hpp"

constexpr std::int64_t kAtOnce = 16;

// z / (1 + e to the power of rising(z)): many at once, since a call for each takes longer than a
// prompt's dot products leave time for.
template <typename Rising>
void sigmoid_times(float* z, std::int64_t count, Rising rising) {
  for (std::int64_t first = 0; first < count; first += kAtOnce) {
    const std::int64_t some = std::min(kAtOnce, count - first);
    float powers[kAtOnce] = {};
    for (std::int64_t i = 0; i < some; ++i) {
      const float power = rising(z[first + i]);
      powers[i] = power > 89 ? 89 : power;
    }
    exponentials<kAtOnce>(powers);
    for (std::int64_t i = 0; i < some; ++i) {
      z[first + i] /= 1 + powers[i];
    }
  }
}

template <typename Function>
void each(float* z, std::int64_t count, Function function) {
  for (std::int64_t i = 0; i < count; ++i) {
    z[i] = function(z[i]);
  }
}

void silu(float* z, std::int64_t count, float) {
  sigmoid_times(z, count, [](float value) { return -value; });
}

void gelu(float* z, std::int64_t count, float) {
  each(z, count, [](float value) { return 0.5f * value * (1 + std::erf(value * 0.70710678f)); });
}

// arXiv 1606.08415, section 2; 1.5957691 is twice the root of 2 / pi: 1 + tanh(y) is twice the
// sigmoid of 2 y.
void gelu_tanh(float* z, std::int64_t count, float) {
  sigmoid_times(z, count, [](float value) {
    return -1.5957691f * (value + 0.044715f * value * value * value);
  });
}

void relu(float* z, std::int64_t count, float threshold) {
  each(z, count, [=](float value) { return value > threshold ? value : 0; });
}

void relu2(float* z, std::int64_t count, float threshold) {
  each(z, count, [=](float value) { return value > threshold ? value * value : 0; });
}

struct Named {
  const char* name;
  Activation function;
};

constexpr Named kActivations[] = {
    {"silu", silu}, {"gelu", gelu}, {"gelu_tanh", gelu_tanh}, {"relu", relu}, {"relu2", relu2}};

}  // namespace

Activation activation_of(const std::string& name) {
  std::string known;
  for (const Named& one : kActivations) {
    if (name == one.name) {
      return one.function;
    }
    known += std::string(known.empty() ? "" : ", ") + one.name;
  }
  throw ArgumentError("activation", "'" + name + "'", "one of " + known);
}

}  // namespace flash_llm
