#include "math/kernels.hpp"

#include <cstdlib>
#include <string>

#include "errors.hpp"

namespace flash_llm {

const Kernels& choose_kernels() {
  const Kernels* const* const usable = usable_kernels();
  const char* named = std::getenv("FLASH_LLM_ROS_KERNELS");
  if (named == nullptr || *named == '\0') {
    return **usable;
  }
  std::string names;
  for (const Kernels* const* next = usable; *next != nullptr; ++next) {
    if (std::string(named) == (*next)->name) {
      return **next;
    }
    names += (names.empty() ? "" : ", ") + std::string((*next)->name);
  }
  throw ArgumentError("FLASH_LLM_ROS_KERNELS", named, "one of " + names + " on this processor");
}

}  // namespace flash_llm
