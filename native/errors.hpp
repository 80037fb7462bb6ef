// What can go wrong: wrong arguments, and reads that failed twice.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

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

// A read that failed; becomes ReadFailedError or ChecksumError in Python. A copy shares nothing, so
// that one thread may keep it and another throw it.
class ReadFault : public std::exception {
 public:
  enum class Kind { kRead, kChecksum };

  ReadFault(Kind fault_kind, std::string text) : kind(fault_kind), sentence(std::move(text)) {}
  const char* what() const noexcept override { return sentence.c_str(); }

  Kind kind;
  std::string sentence;
};

}  // namespace flash_llm
