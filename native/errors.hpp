// What can go wrong: wrong arguments, and reads that failed twice.
#pragma once

#include <stdexcept>
#include <string>

namespace flash_llm {

// A wrong argument; becomes ValueError in Python.
class ArgumentError : public std::invalid_argument {
 public:
  ArgumentError(const std::string& field, const std::string& value, const std::string& wanted)
      : std::invalid_argument(field + ": " + value + " is wrong, must be " + wanted) {}
  explicit ArgumentError(const std::string& sentence) : std::invalid_argument(sentence) {}
};

inline void require(bool right, const char* field, long long value, const std::string& wanted) {
  if (!right) {
    throw ArgumentError(field, std::to_string(value), wanted);
  }
}

// A read that failed; becomes ReadFailedError or ChecksumError in Python. Copying it allocates
// nothing, and one thread may keep it while another throws it.
class ReadFault : public std::runtime_error {
 public:
  enum class Kind { kRead, kChecksum };

  ReadFault(Kind fault_kind, const std::string& sentence)
      : std::runtime_error(sentence), kind(fault_kind) {}

  Kind kind;
};

}  // namespace flash_llm
