#include "math/thread_pool.hpp"

#include <pthread.h>

#include <chrono>

#include "io/signals_blocked.hpp"

namespace flash_llm {
namespace {

// Jobs of a pass follow each other within microseconds; so long a thread looks for the next one, or
// for the end of another's last unit, before it sleeps: falling asleep and waking up take longer.
constexpr std::chrono::microseconds kLooking{50};
constexpr int kLooksAtOnce = 16;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <typename Condition>
bool comes_soon(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + kLooking;
  do {
    for (int look = 0; look < kLooksAtOnce; ++look) {
      if (condition()) {
        return true;
      }
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  const SignalsBlocked blocked;
  workers_.reserve(static_cast<std::size_t>(threads - 1));
  try {
    for (int thread = 1; thread < threads; ++thread) {
      workers_.emplace_back(&ThreadPool::serve, this, thread);
      pthread_setname_np(workers_.back().native_handle(), "flash_compute");
    }
  } catch (...) {
    stop();
    throw;
  }
}

void ThreadPool::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    number_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) {
    worker.join();
  }
  workers_.clear();
}

void ThreadPool::run(const Job& job) {
  bool asleep;
  {
    const std::lock_guard lock(mutex_);
    job_ = job;
    open_ = true;
    next_unit_.store(0);
    number_.fetch_add(1);
    asleep = sleeping_ > 0;
  }
  if (asleep) {
    wake_.notify_all();
  }
  take_units(job, 0);
  std::unique_lock lock(mutex_);
  open_ = false;
  if (working_.load() > 0) {
    lock.unlock();
    if (comes_soon([&] { return working_.load() == 0; })) {
      return;
    }
    lock.lock();
    finished_.wait(lock, [&] { return working_.load() == 0; });
  }
}

void ThreadPool::serve(int thread) {
  std::uint64_t seen = 0;
  while (true) {
    comes_soon([&] { return number_.load() != seen; });
    std::unique_lock lock(mutex_);
    ++sleeping_;
    wake_.wait(lock, [&] { return number_.load() != seen; });
    --sleeping_;
    if (stopping_) {
      return;
    }
    seen = number_.load();
    if (!open_ || thread >= threads()) {
      continue;
    }
    const Job job = job_;
    working_.fetch_add(1);
    lock.unlock();
    take_units(job, thread);
    if (working_.fetch_sub(1) == 1) {
      // Under the lock, so that it cannot fall between the caller's look and its sleep.
      lock.lock();
      finished_.notify_one();
    }
  }
}

void ThreadPool::take_units(const Job& job, int thread) {
  while (true) {
    const std::int64_t unit = next_unit_.fetch_add(1);
    if (unit >= job.units) {
      return;
    }
    job.call(job.work, unit, thread);
  }
}

}  // namespace flash_llm
