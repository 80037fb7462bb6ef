// The reader for every kernel: threads that each wait for one read, or check one, at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <optional>
#include <thread>
#include <vector>

#include "io/group_read.hpp"
#include "io/reader.hpp"

namespace flash_llm {

// Whose read has arrived begins the next one before anybody checks it: the device never waits for
// a checksum, nor for a thread to wake.
class ThreadReader final : public Reader {
 public:
  // A thread for each read in flight, up to a number beyond which they are in each other's way, and
  // a few that check.
  ThreadReader(const GroupFile& file, int reads_in_flight);
  ~ThreadReader() override;

  const char* name() const override { return "threads"; }

 private:
  struct Begun {
    GroupRead read;
    Done done;
  };

  void stop();
  void wake() override;
  void serve();
  // What is to be read next, if another one may be in flight; `lock` holds `mutex_`.
  std::optional<Begun> next(const std::unique_lock<std::mutex>& lock);
  void read(Begun begun, std::unique_lock<std::mutex>& lock);
  void check(Begun begun, std::unique_lock<std::mutex>& lock);

  const int most_in_flight_;
  std::condition_variable wake_;
  std::atomic<int> in_flight_{0};  // changed under mutex_, which guards all below
  std::deque<Begun> arrived_;      // to be checked
  std::deque<Begun> again_;        // to be read again
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace flash_llm
