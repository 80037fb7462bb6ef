#include "io/reader.hpp"

#include <utility>

#include "errors.hpp"
#include "io/reader_threads.hpp"
#include "io/reader_uring.hpp"

namespace flash_llm {

void Reader::submit(Urgency urgency, Run run, Done done) {
  {
    const std::lock_guard lock(mutex_);
    waiting_[static_cast<std::size_t>(urgency)].push_back({std::move(run), std::move(done)});
  }
  wake();
}

std::size_t Reader::cancel_stream() {
  std::deque<Request> cancelled;
  const std::lock_guard lock(mutex_);
  cancelled.swap(waiting_[static_cast<std::size_t>(Urgency::kStream)]);
  return cancelled.size();
}

std::optional<Reader::Request> Reader::take(const std::unique_lock<std::mutex>&) {
  for (std::deque<Request>& queue : waiting_) {
    if (!queue.empty()) {
      Request request = std::move(queue.front());
      queue.pop_front();
      return request;
    }
  }
  return std::nullopt;
}

std::unique_ptr<Reader> make_reader(const std::string& choice, const GroupFile& file,
                                    int reads_in_flight) {
  if (choice != "auto" && choice != "io_uring" && choice != "threads") {
    throw ArgumentError("reader", "'" + choice + "'", "one of auto, io_uring, threads");
  }
  require(reads_in_flight >= 1 && reads_in_flight <= kMostReadsInFlight, "reads_in_flight",
          reads_in_flight, "between 1 and " + std::to_string(kMostReadsInFlight));
  if (choice != "threads") {
    try {
      return std::make_unique<UringReader>(file, reads_in_flight);
    } catch (const UringRefused& refused) {
      if (choice == "io_uring") {
        throw UringRefused(std::string("reader is 'io_uring', which is not to be had here (") +
                           refused.what() + "); it must be 'auto' or 'threads'.");
      }
    }
  }
  return std::make_unique<ThreadReader>(file, reads_in_flight);
}

}  // namespace flash_llm
