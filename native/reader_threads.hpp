// The reader for every kernel: threads that each wait for one read at a time.
#pragma once

#include <condition_variable>
#include <thread>
#include <vector>

#include "reader.hpp"

namespace flash_llm {

class ThreadReader final : public Reader {
 public:
  // One thread for each read in flight, up to a number beyond which they are in each other's way.
  ThreadReader(const GroupFile& file, int reads_in_flight);
  ~ThreadReader() override;

  const char* name() const override { return "threads"; }

 private:
  void wake() override { wake_.notify_one(); }
  void serve();
  std::optional<Request> next();

  std::condition_variable wake_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace flash_llm
