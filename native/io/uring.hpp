// io_uring as this package needs it: reads, by the bare system calls, without liburing.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

struct io_uring_cqe;
struct io_uring_sqe;

namespace flash_llm {

// The kernel, the container or the headers this was compiled with do not have it; says why.
class UringRefused : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// One thread, the one that calls `enable`, calls everything below it, too.
class Uring {
 public:
  // Room for so many reads at once; UringRefused where there is no io_uring.
  explicit Uring(unsigned entries);
  ~Uring();
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  void enable();
  // Puts a read into the ring; no more than `entries` between two calls of submit_and_wait. The
  // pieces must stay where they are until the read is answered.
  void read(int descriptor, const iovec* pieces, std::size_t count, off_t offset,
            std::uint64_t name);
  // Sends what was put in and waits for an answer; the caller looks whether one has come. Returns 0,
  // or the error number that the kernel will answer for ever after.
  int submit_and_wait() { return enter(1); }
  // Sends what was put in; returns the same.
  int submit() { return enter(0); }

  struct Answer {
    std::uint64_t name;
    ssize_t result;  // bytes, or minus an error number
  };
  // Takes one that has arrived; false if there is none.
  bool take(Answer& answer);

 private:
  struct Mapping {
    void* address = nullptr;
    std::size_t bytes = 0;
    ~Mapping();
  };

  void setup(unsigned entries);
  void map(Mapping& mapping, std::size_t bytes, std::uint64_t what);
  int enter(unsigned answers);

  struct Descriptor {
    int number = -1;
    ~Descriptor();
  };

  Descriptor ring_;
  bool disabled_ = false;
  Mapping queues_;
  Mapping entries_;
  io_uring_sqe* asked_ = nullptr;
  const io_uring_cqe* answers_ = nullptr;
  const unsigned* asked_head_ = nullptr;  // moved by the kernel
  unsigned* asked_tail_ = nullptr;
  unsigned asked_mask_ = 0;
  unsigned* answer_head_ = nullptr;
  const unsigned* answer_tail_ = nullptr;  // moved by the kernel
  unsigned answer_mask_ = 0;
};

}  // namespace flash_llm
