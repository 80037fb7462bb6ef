#include "reader_threads.hpp"

#include <pthread.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "group_read.hpp"
#include "signals_blocked.hpp"

namespace flash_llm {
namespace {

constexpr int kMostThreads = 16;

}  // namespace

ThreadReader::ThreadReader(const GroupFile& file, int reads_in_flight) : Reader(file) {
  const SignalsBlocked blocked;
  for (int i = 0; i < std::min(reads_in_flight, kMostThreads); ++i) {
    threads_.emplace_back(&ThreadReader::serve, this);
    pthread_setname_np(threads_.back().native_handle(), "flash_read");
  }
}

ThreadReader::~ThreadReader() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

void ThreadReader::serve() {
  while (std::optional<Request> request = next()) {
    GroupRead read(file_, std::move(request->run));
    ssize_t answer;
    do {
      answer = preadv(file_.descriptor(), read.pieces().data(),
                      static_cast<int>(read.pieces().size()), read.offset());
    } while (!read.finished(answer < 0 ? -errno : answer));
    request->done(read.run(), read.fault());
  }
}

std::optional<Reader::Request> ThreadReader::next() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (std::optional<Request> request = take(lock)) {
      return request;
    }
    wake_.wait(lock);
  }
  return std::nullopt;
}

}  // namespace flash_llm
