#include "reader.hpp"

#include <pthread.h>

#include <utility>

#include "signals_blocked.hpp"

namespace flash_llm {

Reader::Reader(const GroupFile& file, int threads) : file_(file) {
  const SignalsBlocked blocked;
  for (int i = 0; i < threads; ++i) {
    threads_.emplace_back(&Reader::serve, this);
    pthread_setname_np(threads_.back().native_handle(), "flash_read");
  }
}

Reader::~Reader() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

void Reader::submit(Urgency urgency, Run run, Done done) {
  {
    const std::lock_guard lock(mutex_);
    waiting_[static_cast<std::size_t>(urgency)].push_back({std::move(run), std::move(done)});
  }
  wake_.notify_one();
}

std::size_t Reader::cancel_stream() {
  const std::lock_guard lock(mutex_);
  std::deque<Request>& stream = waiting_[static_cast<std::size_t>(Urgency::kStream)];
  const std::size_t count = stream.size();
  stream.clear();
  return count;
}

void Reader::serve() {
  while (std::optional<Request> request = next()) {
    request->done(request->run, file_.read(request->run));
  }
}

std::optional<Reader::Request> Reader::next() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    for (std::deque<Request>& queue : waiting_) {
      if (!queue.empty()) {
        Request request = std::move(queue.front());
        queue.pop_front();
        return request;
      }
    }
    wake_.wait(lock);
  }
  return std::nullopt;
}

std::vector<Run> runs_of(int section, const std::vector<std::int64_t>& groups,
                         const std::vector<std::int32_t>& slots, std::size_t limit) {
  std::vector<Run> runs;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    if (runs.empty() || runs.back().end_group() != groups[i] ||
        runs.back().slots.size() == limit) {
      runs.push_back({section, groups[i], {}});
    }
    runs.back().slots.push_back(slots[i]);
  }
  return runs;
}

}  // namespace flash_llm
