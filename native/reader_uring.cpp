#include "reader_uring.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

#include "hurried_thread.hpp"

namespace flash_llm {
namespace {

constexpr std::uint64_t kBell = UINT64_MAX;
// While checksums of so many bytes are computed the device may run out of reads.
constexpr ssize_t kMostIdleBytes = 16 << 10;

// A kernel or a file system may have io_uring and still not read this file.
void try_a_read(const GroupFile& file) {
  Uring uring(1);
  uring.enable();
  const iovec piece{file.slab().slot(0), file.slab().slot_bytes()};
  Uring::Answer answer{};
  uring.read(file.descriptor(), &piece, 1, 0, 0);
  do {
    uring.submit_and_wait();
  } while (!uring.take(answer));
  const int error_number = answer.result < 0 ? static_cast<int>(-answer.result) : 0;
  if (error_number != 0 && error_number != EIO) {  // a bad sector is for the real reads to report
    throw UringRefused("a read of the file: " + std::generic_category().message(error_number));
  }
}

}  // namespace

Bell::Bell() : descriptor_(eventfd(0, EFD_CLOEXEC)) {
  if (descriptor_ < 0) {
    throw UringRefused("eventfd: " + std::generic_category().message(errno));
  }
}

Bell::~Bell() { close(descriptor_); }

void Bell::ring() const {
  const std::uint64_t once = 1;
  while (write(descriptor_, &once, sizeof once) < 0 && errno == EINTR) {
  }
}

void Bell::await(Uring& uring, std::uint64_t name) {
  uring.read(descriptor_, &piece_, 1, 0, name);
}

UringReader::UringReader(const GroupFile& file, int reads_in_flight)
    : Reader(file),
      uring_(static_cast<unsigned>(reads_in_flight) + 1),
      operations_(static_cast<std::size_t>(reads_in_flight)) {
  try_a_read(file);
  for (std::size_t index = operations_.size(); index-- > 0;) {
    free_.push_back(index);
  }
  thread_ = hurried_thread([this] { serve(); });
}

UringReader::~UringReader() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  bell_.ring();
  thread_.join();
}

void UringReader::wake() {
  if (idle_.exchange(false)) {
    bell_.ring();
  }
}

void UringReader::serve() {
  uring_.enable();
  bell_.await(uring_, kBell);
  bool listening = true;
  while (listening || free_.size() < operations_.size()) {
    // Said before looking: who submits after the look rings the bell.
    idle_ = true;
    begin_waiting();
    if (free_.empty()) {
      idle_ = false;
    }
    uring_.submit_and_wait();
    idle_ = false;
    ssize_t checked = 0;
    Uring::Answer answer{};
    while (uring_.take(answer)) {
      if (answer.name != kBell) {
        take_answer(static_cast<std::size_t>(answer.name), answer.result);
        checked += std::max<ssize_t>(answer.result, 0);
      } else if ((listening = !stopping())) {
        bell_.await(uring_, kBell);
      }
      if (checked >= kMostIdleBytes) {
        begin_waiting();
        uring_.submit();
        checked = 0;
      }
    }
  }
}

void UringReader::begin_waiting() {
  while (!free_.empty()) {
    std::optional<Request> request = next();
    if (!request) {
      return;
    }
    const std::size_t index = free_.back();
    free_.pop_back();
    Operation& operation = operations_[index];
    operation.read.emplace(file_, std::move(request->run));
    operation.done = std::move(request->done);
    ask(index);
  }
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

void UringReader::take_answer(std::size_t index, ssize_t result) {
  Operation& operation = operations_[index];
  if (!operation.read->finished(result)) {
    ask(index);
    return;
  }
  operation.done(operation.read->run(), operation.read->fault());
  operation.done = nullptr;
  free_.push_back(index);
}

}  // namespace flash_llm
