#include "kernels.hpp"

#include <cstdlib>
#include <string>
#include <vector>

#include "errors.hpp"

namespace flash_llm {
namespace {

// Best first.
std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> usable;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (avx512) {
    usable.push_back(&kAvx512Kernels);
  }
  if (avx2) {
    usable.push_back(&kAvx2Kernels);
  }
#endif
  usable.push_back(&kPlainKernels);
  return usable;
}

}  // namespace

const Kernels& choose_kernels() {
  const std::vector<const Kernels*> usable = usable_kernels();
  const char* named = std::getenv("FLASH_LLM_ROS_KERNELS");
  if (named == nullptr || *named == '\0') {
    return *usable.front();
  }
  std::string names;
  for (const Kernels* kernels : usable) {
    if (std::string(named) == kernels->name) {
      return *kernels;
    }
    names += (names.empty() ? "" : ", ") + std::string(kernels->name);
  }
  throw ArgumentError("FLASH_LLM_ROS_KERNELS", named, "one of " + names + " on this processor");
}

}  // namespace flash_llm
