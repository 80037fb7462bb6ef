#include "reader_threads.hpp"

#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "group_read.hpp"
#include "hurried_thread.hpp"

namespace flash_llm {
namespace {

constexpr int kMostThreads = 32;

}  // namespace

ThreadReader::ThreadReader(const GroupFile& file, int reads_in_flight) : Reader(file) {
  for (int i = 0; i < std::min(reads_in_flight, kMostThreads); ++i) {
    threads_.push_back(hurried_thread([this] { serve(); }));
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
