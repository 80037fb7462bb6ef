#include "math/activation.hpp"

#include <string>

#include "errors.hpp"

namespace flash_llm {
namespace {

struct Named {
  const char* name;
  Activation activation;
};

constexpr Named kActivations[] = {{"silu", Activation::kSilu},
                                  {"gelu", Activation::kGelu},
                                  {"gelu_tanh", Activation::kGeluTanh},
                                  {"relu", Activation::kRelu},
                                  {"relu2", Activation::kRelu2},
                                  {"clamped_swiglu", Activation::kClampedSwiglu}};

}  // namespace

Activation activation_of(const char* name) {
  std::string known;
  for (const Named& one : kActivations) {
    if (std::string(name) == one.name) {
      return one.activation;
    }
    known += std::string(known.empty() ? "" : ", ") + one.name;
  }
  throw ArgumentError("activation", "'" + std::string(name) + "'", "one of " + known);
}

}  // namespace flash_llm
