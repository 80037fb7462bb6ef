#include "io/short_slice_thread.hpp"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace flash_llm {
namespace {

constexpr std::uint64_t kLeastSlice = 100'000;  // ns

// The kernel's struct sched_attr in its first form, which C libraries do not declare.
struct Attributes {
  std::uint32_t size;
  std::uint32_t policy;
  std::uint64_t flags;
  std::int32_t nice;
  std::uint32_t priority;
  std::uint64_t slice;
  std::uint64_t deadline;
  std::uint64_t period;
};

}  // namespace

void name_and_shorten_slices() {
  pthread_setname_np(pthread_self(), "flash_read");
#ifdef SYS_sched_setattr
  if (sched_getscheduler(0) == SCHED_OTHER) {
    Attributes wanted{};
    wanted.size = sizeof wanted;
    wanted.policy = SCHED_OTHER;
    wanted.nice = getpriority(PRIO_PROCESS, 0);  // as it is
    wanted.slice = kLeastSlice;
    syscall(SYS_sched_setattr, 0, &wanted, 0);
  }
#endif
}

}  // namespace flash_llm
