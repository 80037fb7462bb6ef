#include "io/uring.hpp"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>
#include <thread>

#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#endif

namespace flash_llm {

Uring::Mapping::~Mapping() {
  if (address != nullptr) {
    munmap(address, bytes);
  }
}

Uring::Descriptor::~Descriptor() {
  if (number >= 0) {
    close(number);
  }
}

Uring::~Uring() = default;

// Headers of Linux 5.7 or later, which know all that is used here except for the flags below.
#if defined(IORING_FEAT_FAST_POLL) && defined(__NR_io_uring_setup)

namespace {

constexpr unsigned kRingDisabled = 1u << 6;   // IORING_SETUP_R_DISABLED, Linux 5.10
constexpr unsigned kSingleIssuer = 1u << 12;  // IORING_SETUP_SINGLE_ISSUER, Linux 6.0
constexpr unsigned kDeferTasks = 1u << 13;    // IORING_SETUP_DEFER_TASKRUN, Linux 6.1
constexpr unsigned kEnableRings = 12;         // IORING_REGISTER_ENABLE_RINGS

[[noreturn]] void refuse(const char* what) {
  throw UringRefused(std::string(what) + ": " + std::generic_category().message(errno));
}

template <typename Value>
Value* at(void* base, unsigned offset) {
  return reinterpret_cast<Value*>(static_cast<char*>(base) + offset);
}

}  // namespace

Uring::Uring(unsigned entries) { setup(entries); }

void Uring::setup(unsigned entries) {
  io_uring_params params{};
  // Answers are then completed by the thread that waits for them, and interrupt nobody else.
  params.flags = kRingDisabled | kSingleIssuer | kDeferTasks;
  ring_.number = static_cast<int>(syscall(__NR_io_uring_setup, entries, &params));
  disabled_ = ring_.number >= 0;
  if (ring_.number < 0 && errno == EINVAL) {
    params = {};
    ring_.number = static_cast<int>(syscall(__NR_io_uring_setup, entries, &params));
  }
  if (ring_.number < 0) {
    refuse("io_uring_setup");
  }
  if ((params.features & IORING_FEAT_SINGLE_MMAP) == 0) {
    throw UringRefused("the kernel is older than Linux 5.4");
  }
  const std::size_t asked_bytes = params.sq_off.array + params.sq_entries * sizeof(unsigned);
  const std::size_t answer_bytes = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
  map(queues_, std::max(asked_bytes, answer_bytes), IORING_OFF_SQ_RING);
  map(entries_, params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES);
  asked_ = static_cast<io_uring_sqe*>(entries_.address);
  asked_head_ = at<unsigned>(queues_.address, params.sq_off.head);
  asked_tail_ = at<unsigned>(queues_.address, params.sq_off.tail);
  asked_mask_ = *at<unsigned>(queues_.address, params.sq_off.ring_mask);
  answers_ = at<io_uring_cqe>(queues_.address, params.cq_off.cqes);
  answer_head_ = at<unsigned>(queues_.address, params.cq_off.head);
  answer_tail_ = at<unsigned>(queues_.address, params.cq_off.tail);
  answer_mask_ = *at<unsigned>(queues_.address, params.cq_off.ring_mask);
  unsigned* order = at<unsigned>(queues_.address, params.sq_off.array);
  for (unsigned i = 0; i < params.sq_entries; ++i) {
    order[i] = i;
  }
}

void Uring::map(Mapping& mapping, std::size_t bytes, std::uint64_t what) {
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                      ring_.number, static_cast<off_t>(what));
  if (mapped == MAP_FAILED) {
    refuse("mmap of the ring");
  }
  mapping.address = mapped;
  mapping.bytes = bytes;
}

void Uring::enable() {
  if (disabled_) {
    syscall(__NR_io_uring_register, ring_.number, kEnableRings, nullptr, 0);
  }
}

void Uring::read(int descriptor, const iovec* pieces, std::size_t count, off_t offset,
                 std::uint64_t name) {
  const unsigned tail = *asked_tail_;
  io_uring_sqe& entry = asked_[tail & asked_mask_];
  std::memset(&entry, 0, sizeof entry);
  const bool plain = count == 1 && pieces->iov_len <= INT32_MAX;
  entry.opcode = plain ? IORING_OP_READ : IORING_OP_READV;
  entry.fd = descriptor;
  entry.addr = reinterpret_cast<std::uint64_t>(plain ? pieces->iov_base : pieces);
  entry.len = static_cast<unsigned>(plain ? pieces->iov_len : count);
  entry.off = static_cast<std::uint64_t>(offset);
  entry.user_data = name;
  __atomic_store_n(asked_tail_, tail + 1, __ATOMIC_RELEASE);
}

int Uring::enter(unsigned answers) {
  const unsigned asked = *asked_tail_ - __atomic_load_n(asked_head_, __ATOMIC_ACQUIRE);
  if (syscall(__NR_io_uring_enter, ring_.number, asked, answers, IORING_ENTER_GETEVENTS, nullptr,
              0) >= 0 || errno == EINTR) {
    return 0;
  }
  if (errno != EAGAIN && errno != EBUSY && errno != ENOMEM) {
    return errno;
  }
  // Short of memory. What was put in stays in the ring, and the caller comes again.
  std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return 0;
}

bool Uring::take(Answer& answer) {
  const unsigned head = *answer_head_;
  if (head == __atomic_load_n(answer_tail_, __ATOMIC_ACQUIRE)) {
    return false;
  }
  const io_uring_cqe& entry = answers_[head & answer_mask_];
  answer = {entry.user_data, entry.res};
  __atomic_store_n(answer_head_, head + 1, __ATOMIC_RELEASE);
  return true;
}

#else

Uring::Uring(unsigned entries) { setup(entries); }
void Uring::setup(unsigned) {
  throw UringRefused("compiled without the headers of Linux 5.7 or later");
}
void Uring::enable() {}
void Uring::read(int, const iovec*, std::size_t, off_t, std::uint64_t) {}
int Uring::enter(unsigned) { return ENOSYS; }
bool Uring::take(Answer&) { return false; }

#endif

}  // namespace flash_llm
