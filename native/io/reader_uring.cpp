#include "io/reader_uring.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

#include "io/short_slice_thread.hpp"

namespace flash_llm {
namespace {

constexpr std::uint64_t kWakeEvent = UINT64_MAX;
// While checksums of so many bytes are computed the device may run out of reads.
constexpr std::size_t kMostIdleBytes = 16 << 10;

// A kernel or a file system may have io_uring and still not read this file.
void try_a_read(const GroupFile& file) {
  Uring uring(1);
  uring.enable();
  const iovec piece{file.slab().slot(0), file.slab().slot_bytes()};
  Uring::Answer answer{};
  uring.read(file.descriptor(), &piece, 1, 0, 0);
  int error_number = 0;
  do {
    error_number = uring.submit_and_wait();
  } while (error_number == 0 && !uring.take(answer));
  if (error_number == 0 && answer.result < 0) {
    error_number = static_cast<int>(-answer.result);
  }
  if (error_number != 0 && error_number != EIO) {  // a bad sector is for the real reads to report
    throw UringRefused("a read of the file: " + std::generic_category().message(error_number));
  }
}

}  // namespace

WakeEvent::WakeEvent() : descriptor_(eventfd(0, EFD_CLOEXEC)) {
  if (descriptor_ < 0) {
    throw UringRefused("eventfd: " + std::generic_category().message(errno));
  }
}

WakeEvent::~WakeEvent() { close(descriptor_); }

void WakeEvent::signal() const {
  const std::uint64_t once = 1;
  while (write(descriptor_, &once, sizeof once) < 0 && errno == EINTR) {
  }
}

void WakeEvent::await(Uring& uring, std::uint64_t name) {
  uring.read(descriptor_, &piece_, 1, 0, name);
}

UringReader::UringReader(const GroupFile& file, int reads_in_flight)
    : Reader(file),
      most_in_flight_(static_cast<std::size_t>(reads_in_flight)),
      uring_(static_cast<unsigned>(reads_in_flight) + 1),
      operations_(2 * most_in_flight_) {
  try_a_read(file);
  for (std::size_t index = operations_.size(); index-- > 0;) {
    free_.push_back(index);
  }
  thread_ = short_slice_thread([this] { serve(); });
}

UringReader::~UringReader() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_event_.signal();
  submitted_.notify_one();
  thread_.join();
}

void UringReader::wake() {
  if (idle_.exchange(false)) {
    wake_event_.signal();
  }
  if (broken_) {
    submitted_.notify_one();
  }
}

void UringReader::serve() {
  if (const int error_number = serve_ring()) {
    serve_faults(error_number);
  }
}

int UringReader::serve_ring() {
  uring_.enable();
  wake_event_.await(uring_, kWakeEvent);
  bool listening = true;
  while (listening || free_.size() < operations_.size()) {
    const bool wait = arrived_.empty();
    // Said before looking: who submits after the look wakes this thread.
    idle_ = wait;
    begin_waiting();
    if (in_flight_ == most_in_flight_) {
      idle_ = false;
    }
    const int error_number = wait ? uring_.submit_and_wait() : uring_.submit();
    idle_ = false;
    if (error_number != 0) {
      return error_number;
    }
    if (take_answers() && (listening = !stopping())) {
      wake_event_.await(uring_, kWakeEvent);
    }
    if (begin_waiting()) {
      uring_.submit();  // whose error the next round finds again
    }
    check_some();
  }
  return 0;
}

// Once no read will be answered any more, what still arrives hits slots that nothing is read into.
void UringReader::serve_faults(int error_number) {
  const auto fail = [&](const Run& run, const Done& done) {
    done(run, ReadFault(ReadFault::Kind::kRead,
                        file_.where(run, 0) + ": io_uring failed: " +
                            std::generic_category().message(error_number)));
  };
  for (Operation& operation : operations_) {
    if (operation.done) {
      fail(operation.read->run(), operation.done);
      operation.done = nullptr;
    }
  }
  std::unique_lock lock(mutex_);
  broken_ = true;
  while (!stopping_) {
    if (std::optional<Request> request = take(lock)) {
      lock.unlock();
      fail(request->run, request->done);
      lock.lock();
    } else {
      submitted_.wait(lock);
    }
  }
}

bool UringReader::begin_waiting() {
  const std::size_t before = in_flight_;
  for (; in_flight_ < most_in_flight_; ++in_flight_) {
    if (!again_.empty()) {
      ask(again_.front());
      again_.pop_front();
      continue;
    }
    std::optional<Request> request = free_.empty() ? std::nullopt : next();
    if (!request) {
      break;
    }
    const std::size_t index = free_.back();
    free_.pop_back();
    Operation& operation = operations_[index];
    operation.read.emplace(file_, std::move(request->run));
    operation.done = std::move(request->done);
    ask(index);
  }
  return in_flight_ > before;
}

std::optional<Reader::Request> UringReader::next() {
  const std::unique_lock lock(mutex_);
  return stopping_ ? std::nullopt : take(lock);
}

bool UringReader::stopping() {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

void UringReader::ask(std::size_t index) {
  const GroupRead& read = *operations_[index].read;
  uring_.read(file_.descriptor(), read.pieces().data(), read.pieces().size(), read.offset(), index);
}

bool UringReader::take_answers() {
  bool woken = false;
  Uring::Answer answer{};
  while (uring_.take(answer)) {
    const std::size_t index = static_cast<std::size_t>(answer.name);
    if (answer.name == kWakeEvent) {
      woken = true;
    } else if (operations_[index].read->arrived(answer.result)) {
      arrived_.push_back(index);
      --in_flight_;
    } else {
      ask(index);
    }
  }
  return woken;
}

void UringReader::check_some() {
  for (std::size_t checked = 0; !arrived_.empty() && checked < kMostIdleBytes;) {
    const std::size_t index = arrived_.front();
    arrived_.pop_front();
    Operation& operation = operations_[index];
    checked += operation.read->run().slots.size() * file_.slab().slot_bytes();
    if (!operation.read->finished()) {
      again_.push_back(index);
      continue;
    }
    operation.done(operation.read->run(), operation.read->fault());
    operation.done = nullptr;
    free_.push_back(index);
  }
}

}  // namespace flash_llm
