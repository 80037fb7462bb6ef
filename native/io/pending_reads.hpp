// Reads that are waited for together.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>

#include "io/group_file.hpp"

namespace flash_llm {

// Requests under way, and the fault of the earliest group among those that failed.
class PendingReads {
 public:
  PendingReads() = default;
  ~PendingReads() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return count_ == 0; });
  }
  PendingReads(const PendingReads&) = delete;
  PendingReads& operator=(const PendingReads&) = delete;

  // Before submit() of a read that ends with end(), once fewer than `most` are under way.
  template <typename Submit>
  void begin(std::size_t most, Submit submit) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return count_ < most; });
      ++count_;
    }
    try {
      submit();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      --count_;
      throw;
    }
  }
  void end(const Run& run, const std::optional<ReadFault>& fault) {
    const std::lock_guard lock(mutex_);
    if (fault && (!fault_ || run.first_group < failed_group_)) {
      fault_ = fault;
      failed_group_ = run.first_group;
    }
    --count_;
    changed_.notify_all();
  }
  void finish() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return count_ == 0; });
    if (fault_) {
      throw *fault_;
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t count_ = 0;
  std::int64_t failed_group_ = 0;
  std::optional<ReadFault> fault_;
};

}  // namespace flash_llm
