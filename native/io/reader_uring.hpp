// The reader for kernels with io_uring: one thread that has all reads in flight.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <optional>
#include <thread>
#include <vector>

#include "io/group_read.hpp"
#include "io/reader.hpp"
#include "io/uring.hpp"

namespace flash_llm {

// Wakes a thread that sleeps in its ring: an eventfd, which is read through the ring, too.
class WakeEvent {
 public:
  WakeEvent();
  ~WakeEvent();
  WakeEvent(const WakeEvent&) = delete;
  WakeEvent& operator=(const WakeEvent&) = delete;

  void signal() const;
  // The ring answers by this name once the event was signalled.
  void await(Uring& uring, std::uint64_t name);

 private:
  const int descriptor_;
  std::uint64_t times_ = 0;
  const iovec piece_{&times_, sizeof times_};
};

// Only its own thread touches the ring; whoever submits wakes that thread if it sleeps. What has
// arrived makes room for the next read first, and is checked while the device works on that. Where
// the kernel will take and answer no more, all reads fail from then on.
class UringReader final : public Reader {
 public:
  // UringRefused where io_uring is not to be had, or cannot read this file.
  UringReader(const GroupFile& file, int reads_in_flight);
  ~UringReader() override;

  const char* name() const override { return "io_uring"; }

 private:
  struct Operation {
    std::optional<GroupRead> read;
    Done done;
  };

  void wake() override;
  void serve();
  // Until stopped; the error number that ended it otherwise.
  int serve_ring();
  // Fails what is under way and all that is submitted until stopped.
  void serve_faults(int error_number);
  // As many as may be in flight: what has to be read again, then the most urgent requests. Whether
  // there were any.
  bool begin_waiting();
  std::optional<Request> next();
  bool stopping();
  void ask(std::size_t index);
  // Answers that have come; true if the wake event's was among them.
  bool take_answers();
  // Some of what has arrived, the earliest first.
  void check_some();

  WakeEvent wake_event_;
  const std::size_t most_in_flight_;
  Uring uring_;
  std::vector<Operation> operations_;  // so many more that the checks need not keep up
  std::vector<std::size_t> free_;
  std::size_t in_flight_ = 0;
  std::deque<std::size_t> arrived_;  // to be checked
  std::deque<std::size_t> again_;    // to be read again
  std::atomic<bool> idle_{false};  // begins whatever is submitted, when woken
  bool stopping_ = false;          // guarded by mutex_
  std::atomic<bool> broken_{false};  // set under mutex_, and from then on the thread sleeps here:
  std::condition_variable submitted_;
  std::thread thread_;
};

}  // namespace flash_llm
