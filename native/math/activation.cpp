#include "math/activation.hpp"

#include <cmath>

#include "errors.hpp"

namespace flash_llm {
namespace {

float silu(float z, float) { return z / (1 + std::exp(-z)); }

float gelu(float z, float) { return 0.5f * z * (1 + std::erf(z * 0.70710678f)); }

// arXiv 1606.08415, section 2; 0.79788456 is sqrt(2 / pi).
float gelu_tanh(float z, float) {
  return 0.5f * z * (1 + std::tanh(0.79788456f * (z + 0.044715f * z * z * z)));
}

float relu(float z, float threshold) { return z > threshold ? z : 0; }

float relu2(float z, float threshold) { return z > threshold ? z * z : 0; }

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
