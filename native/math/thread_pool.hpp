// A few threads that share work out in units.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

namespace flash_llm {

// The thread that calls share() is one of `threads`. The others sleep in the kernel between jobs.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool() { stop(); }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Ends the other threads; the caller is the only one from then on.
  void stop();
  // How many threads take part, the caller included.
  int threads() const { return std::min(most_.load(), static_cast<int>(workers_.size()) + 1); }
  // At most so many take part from now on; not to be called during share().
  void limit(int most) { most_ = most; }

  // work(unit, thread) once for each unit from 0 on, handed out in ascending order; returns when all
  // are done. `work` must not throw. Nobody waits for a thread that has not begun with a unit.
  // `alone`: the caller does all.
  template <typename Work>
  void share(std::int64_t units, const Work& work, bool alone = false) {
    if (units <= 1 || alone || threads() == 1) {
      for (std::int64_t unit = 0; unit < units; ++unit) {
        work(unit, 0);
      }
      return;
    }
    run({units, &work, [](const void* shared, std::int64_t unit, int thread) {
           (*static_cast<const Work*>(shared))(unit, thread);
         }});
  }

 private:
  struct Job {
    std::int64_t units = 0;
    const void* work = nullptr;
    void (*call)(const void* work, std::int64_t unit, int thread) = nullptr;
  };

  void run(const Job& job);
  void serve(int thread);
  void take_units(const Job& job, int thread);

  std::mutex mutex_;  // guards job_, open_, stopping_ and sleeping_, and changes of number_
  std::condition_variable wake_;
  std::condition_variable finished_;
  Job job_;
  bool open_ = false;  // threads may still join the job
  bool stopping_ = false;
  std::atomic<int> most_{std::numeric_limits<int>::max()};
  int sleeping_ = 0;
  std::atomic<std::uint64_t> number_{0};  // of the job
  std::atomic<std::int64_t> next_unit_{0};
  std::atomic<int> working_{0};  // threads that joined the job, but the caller
  std::vector<std::thread> workers_;
};

}  // namespace flash_llm
