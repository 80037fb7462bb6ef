#include "io/measure_reads.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <random>

#include "errors.hpp"
#include "io/group_file.hpp"
#include "io/pending_reads.hpp"
#include "io/reader.hpp"
#include "io/slab.hpp"

namespace flash_llm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kMostAheadBytes = 8 << 20;

// Requests that wait in the reader's queue besides those in flight, as the engine's do: so that the
// reader has the next one at hand while the latest is checked. Few where they are large.
std::int32_t slots_for(int in_flight, std::int64_t bytes) {
  const std::int64_t most = std::max<std::int64_t>(4, kMostAheadBytes / bytes);
  return in_flight + static_cast<std::int32_t>(std::min<std::int64_t>(in_flight, most));
}

// A closed loop: whatever has arrived is followed by the next read into the same slot.
class ReadLoop {
 public:
  ReadLoop(Reader& reader, std::int64_t places, Pattern pattern, Clock::time_point end)
      : reader_(reader),
        places_(static_cast<std::uint64_t>(places)),
        random_(pattern == Pattern::kRandom),
        seed_(std::random_device()()),
        end_(end) {}

  void run(std::int32_t slots) {
    for (std::int32_t slot = 0; slot < slots; ++slot) {
      pending_.begin(static_cast<std::size_t>(slots), [&] { read_into(slot); });
    }
    pending_.finish();
  }
  std::uint64_t reads() const { return reads_; }

 private:
  void read_into(std::int32_t slot) {
    reader_.submit(Urgency::kDemand, Run{0, next_place(), {slot}},
                   [this](const Run& run, const std::optional<ReadFault>& fault) {
                     reads_.fetch_add(1, std::memory_order_relaxed);
                     if (fault || Clock::now() >= end_) {
                       pending_.end(run, fault);
                     } else {
                       read_into(run.slots[0]);
                     }
                   });
  }

  std::int64_t next_place() {
    std::uint64_t value = next_.fetch_add(1, std::memory_order_relaxed);
    if (random_) {  // splitmix64 of a counter: no state that threads would wait for
      value = (value + seed_) * 0x9e3779b97f4a7c15u;
      value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
      value = (value ^ value >> 27) * 0x94d049bb133111ebu;
      value ^= value >> 31;
    }
    return static_cast<std::int64_t>(value % places_);
  }

  Reader& reader_;
  const std::uint64_t places_;
  const bool random_;
  const std::uint64_t seed_;
  const Clock::time_point end_;
  std::atomic<std::uint64_t> next_{0};
  std::atomic<std::uint64_t> reads_{0};
  PendingReads pending_;
};

}  // namespace

ReadMeasurement measure_reads(const std::string& path, std::int64_t bytes, int in_flight,
                              double seconds, Pattern pattern, const std::string& reader_name,
                              bool checksum) {
  require(bytes >= 512 && bytes % 512 == 0 && bytes <= std::int64_t{1} << 30, "bytes", bytes,
          "a multiple of 512, at most 1 GiB");
  require(in_flight >= 1 && in_flight <= kMostReadsInFlight, "in_flight", in_flight,
          "between 1 and " + std::to_string(kMostReadsInFlight));
  if (!(seconds > 0.0 && seconds <= 3600.0)) {
    throw ArgumentError("seconds", std::to_string(seconds), "above 0, at most 3600");
  }
  Counters counters;
  const std::int32_t slots = slots_for(in_flight, bytes);
  const Slab slab(slots, static_cast<std::size_t>(bytes), false);
  const GroupFile file(path, 0, true, checksum ? Checksums::kComputed : Checksums::kIgnored, slab,
                       counters);
  if (file.groups() < 1) {
    throw ArgumentError("path", "a file shorter than " + std::to_string(bytes) + " bytes",
                        "at least as long as one read");
  }
  const std::unique_ptr<Reader> reader = make_reader(reader_name, file, in_flight);
  const Clock::time_point start = Clock::now();
  ReadLoop loop(*reader, file.groups(), pattern,
                start + std::chrono::duration_cast<Clock::duration>(
                            std::chrono::duration<double>(seconds)));
  loop.run(slots);
  const double passed = std::chrono::duration<double>(Clock::now() - start).count();
  return {loop.reads(), loop.reads() * static_cast<std::uint64_t>(bytes), passed, file.direct(),
          reader->name()};
}

}  // namespace flash_llm
