// How fast the flash delivers through our own reader: for the device profile and for benches.
#pragma once

#include <cstdint>
#include <string>

namespace flash_llm {

enum class Pattern { kRandom, kSequential };

struct ReadMeasurement {
  std::uint64_t reads = 0;
  std::uint64_t bytes = 0;
  double seconds = 0.0;
  bool direct = false;
  std::string reader;
};

// Keeps `in_flight` reads of `bytes` each under way for so many seconds. `checksum`: computes each
// read's CRC32C as for a store, but compares it with nothing, so that any file will do. Throws
// ArgumentError and ReadFault.
ReadMeasurement measure_reads(const std::string& path, std::int64_t bytes, int in_flight,
                              double seconds, Pattern pattern, const std::string& reader,
                              bool checksum);

}  // namespace flash_llm
