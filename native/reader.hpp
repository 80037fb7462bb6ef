// Many reads in flight: a pool of threads that serves requests in order of urgency.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "group_file.hpp"

namespace flash_llm {

enum class Urgency { kDemand, kPrefetch, kStream };

class Reader {
 public:
  // Called once, on a reader thread, with the fault if the read failed.
  using Done = std::function<void(const Run&, const std::optional<ReadFault>&)>;

  Reader(const GroupFile& file, int threads);
  // Finishes the reads that have begun and forgets the others.
  ~Reader();
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  void submit(Urgency urgency, Run run, Done done);
  // Forgets the stream requests that have not begun; returns how many.
  std::size_t cancel_stream();
  std::size_t request_groups() const { return file_.request_groups(); }

 private:
  struct Request {
    Run run;
    Done done;
  };

  void serve();
  std::optional<Request> next();

  const GroupFile& file_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::array<std::deque<Request>, 3> waiting_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace flash_llm
