#include "io/reader_threads.hpp"

#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "io/short_slice_thread.hpp"

namespace flash_llm {
namespace {

constexpr int kMostReading = 32;
// So many threads check beside those that read; what they leave over, the others check first.
constexpr std::size_t kChecking = 1;
// Waking another thread costs more than the checksum of so few bytes, or than the device loses if so
// many other reads are in flight meanwhile.
constexpr std::size_t kCheckedAtOnce = 16 << 10;
constexpr int kBusy = 3;

}  // namespace

ThreadReader::ThreadReader(const GroupFile& file, int reads_in_flight)
    : Reader(file), most_in_flight_(std::min(reads_in_flight, kMostReading)) {
  const std::size_t threads = static_cast<std::size_t>(most_in_flight_) + kChecking;
  threads_.reserve(threads);
  try {
    while (threads_.size() < threads) {
      threads_.push_back(short_slice_thread([this] { serve(); }));
    }
  } catch (...) {
    stop();
    throw;
  }
}

ThreadReader::~ThreadReader() { stop(); }

void ThreadReader::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

// Where no more may be in flight, the thread whose read arrives next finds what was submitted.
void ThreadReader::wake() {
  if (in_flight_ < most_in_flight_) {
    wake_.notify_one();
  }
}

void ThreadReader::serve() {
  std::unique_lock lock(mutex_);
  while (true) {
    std::optional<Begun> to_read = arrived_.size() <= kChecking ? next(lock) : std::nullopt;
    if (to_read) {
      read(*std::move(to_read), lock);
    } else if (!arrived_.empty()) {
      Begun begun = std::move(arrived_.front());
      arrived_.pop_front();
      check(std::move(begun), lock);
    } else if (stopping_) {
      return;
    } else {
      wake_.wait(lock);
    }
  }
}

std::optional<ThreadReader::Begun> ThreadReader::next(const std::unique_lock<std::mutex>& lock) {
  if (in_flight_ == most_in_flight_) {
    return std::nullopt;
  }
  if (!again_.empty()) {
    Begun begun = std::move(again_.front());
    again_.pop_front();
    return begun;
  }
  std::optional<Request> request = stopping_ ? std::nullopt : take(lock);
  if (!request) {
    return std::nullopt;
  }
  return Begun{GroupRead(file_, std::move(request->run)), std::move(request->done)};
}

void ThreadReader::read(Begun begun, std::unique_lock<std::mutex>& lock) {
  ++in_flight_;
  const bool somebody_checks = !arrived_.empty();
  lock.unlock();
  if (somebody_checks) {
    wake_.notify_one();
  }
  GroupRead& read = begun.read;
  const bool small = read.run().slots.size() * file_.slab().slot_bytes() <= kCheckedAtOnce;
  bool at_once;
  do {
    ssize_t answer;
    do {
      answer = preadv(file_.descriptor(), read.pieces().data(),
                      static_cast<int>(read.pieces().size()), read.offset());
    } while (!read.arrived(answer < 0 ? -errno : answer));
    at_once = small || in_flight_ > kBusy;
  } while (at_once && !read.finished());
  if (at_once) {
    begun.done(read.run(), read.fault());
  }
  lock.lock();
  --in_flight_;
  if (!at_once) {
    arrived_.push_back(std::move(begun));
  }
}

void ThreadReader::check(Begun begun, std::unique_lock<std::mutex>& lock) {
  lock.unlock();
  const bool finished = begun.read.finished();
  if (finished) {
    begun.done(begun.read.run(), begun.read.fault());
  }
  lock.lock();
  if (!finished) {
    again_.push_back(std::move(begun));
  }
}

}  // namespace flash_llm
