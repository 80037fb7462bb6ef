// Which of the idle cache entries yields when another group needs a place.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace flash_llm {

// Sees the idle entries only: what is claimed, expected or being read is never among them, so that
// it cannot yield. Every call takes constant time (token(): now and then linear) and allocates
// nothing.
class WindowPolicy {
 public:
  virtual ~WindowPolicy() = default;
  // `entry`, which holds `group`, is idle from now on; `used`: a computation has just used it,
  // otherwise it was only predicted.
  virtual void add(std::int32_t entry, std::int64_t group, bool used) = 0;
  // An idle entry is needed.
  virtual void take(std::int32_t entry) = 0;
  // Takes the idle entry that should yield; -1 if none is idle.
  virtual std::int32_t victim() = 0;
  // Another token begins.
  virtual void token() {}
};

// By name: one of policy_names(), some with a number (`sliding_window:4`); ArgumentError otherwise.
std::unique_ptr<WindowPolicy> make_policy(const std::string& name, std::int32_t entries,
                                          std::int64_t groups);
const std::vector<std::string>& policy_names();
inline const char* default_policy() { return "least_likely"; }

}  // namespace flash_llm
