// Many reads in flight, begun in order of urgency. Two back ends: io_uring, and a pool of threads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "io/group_file.hpp"

namespace flash_llm {

constexpr int kMostReadsInFlight = 256;

enum class Urgency { kDemand, kPrefetch, kStream };

// Destroying a reader finishes the reads that have begun and forgets the others.
class Reader {
 public:
  // Called once, on a thread of the reader, with the fault if the read failed; may submit more.
  using Done = std::function<void(const Run&, const std::optional<ReadFault>&)>;

  explicit Reader(const GroupFile& file) : file_(file) {}
  virtual ~Reader() = default;
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  virtual const char* name() const = 0;
  // A std::bad_alloc leaves everything as it was.
  void submit(Urgency urgency, Run run, Done done);
  // Forgets the streamed requests that have not begun, of which `done` is not called; returns how
  // many. Whoever submits anything else may rely on its answer.
  std::size_t cancel_stream();
  std::int64_t group_bytes() const {
    return static_cast<std::int64_t>(file_.slab().slot_bytes());
  }
  std::size_t request_groups() const { return file_.request_groups(); }

 protected:
  struct Request {
    Run run;
    Done done;
  };

  // Something was put into the queues.
  virtual void wake() = 0;
  // The most urgent request, the earliest of these; `lock` holds `mutex_`.
  std::optional<Request> take(const std::unique_lock<std::mutex>& lock);

  const GroupFile& file_;
  std::mutex mutex_;

 private:
  std::array<std::deque<Request>, 3> waiting_;
};

// choice: 'io_uring', 'threads', or 'auto': io_uring where kernel and container allow it, which a
// real read tries, else threads. UringRefused, with a sentence, for io_uring where it is not to be
// had.
std::unique_ptr<Reader> make_reader(const std::string& choice, const GroupFile& file,
                                    int reads_in_flight);

}  // namespace flash_llm
