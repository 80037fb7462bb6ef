#include "io/crc32c.hpp"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace flash_llm {
namespace {

constexpr std::uint32_t kPolynomial = 0x82F63B78;
// Three independent streams of this many bytes hide the three cycle latency of the instruction.
constexpr std::size_t kLongStream = 1024;
constexpr std::size_t kShortStream = 128;
// What a device has just written is in DRAM, and streams of a KiB are too short for the processor to
// see them coming.
constexpr std::size_t kLine = 64;
constexpr std::size_t kAhead = 3 * kLongStream;

using ByteTables = std::array<std::array<std::uint32_t, 256>, 8>;

// tables[k][b]: the state after byte b and k further zero bytes.
ByteTables make_byte_tables() {
  ByteTables tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t state = byte;
    for (int bit = 0; bit < 8; ++bit) {
      state = (state >> 1) ^ (state & 1 ? kPolynomial : 0);
    }
    tables[0][byte] = state;
  }
  for (std::size_t k = 1; k < tables.size(); ++k) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t before = tables[k - 1][byte];
      tables[k][byte] = (before >> 8) ^ tables[0][before & 0xFF];
    }
  }
  return tables;
}

std::uint32_t update_by_table(std::uint32_t state, const std::uint8_t* data, std::size_t size) {
  static const ByteTables tables = make_byte_tables();
  for (; size >= 8; data += 8, size -= 8) {
    std::uint32_t next = 0;
    for (int i = 0; i < 4; ++i) {
      next ^= tables[7 - i][((state >> (8 * i)) ^ data[i]) & 0xFF] ^ tables[3 - i][data[4 + i]];
    }
    state = next;
  }
  for (; size > 0; ++data, --size) {
    state = (state >> 8) ^ tables[0][(state ^ *data) & 0xFF];
  }
  return state;
}

#if defined(__x86_64__) || defined(__aarch64__)

#if defined(__x86_64__)
#if defined(__clang__)
#define CRC_TARGET __attribute__((target("sse4.2,crc32")))
#else
#define CRC_TARGET __attribute__((target("sse4.2")))
#endif
bool has_instruction() { return __builtin_cpu_supports("sse4.2"); }
CRC_TARGET inline std::uint32_t step8(std::uint32_t state, std::uint64_t word) {
  return static_cast<std::uint32_t>(_mm_crc32_u64(state, word));
}
CRC_TARGET inline std::uint32_t step1(std::uint32_t state, std::uint8_t byte) {
  return _mm_crc32_u8(state, byte);
}
#else
#if defined(__clang__)
#define CRC_TARGET __attribute__((target("crc")))
#else
#define CRC_TARGET __attribute__((target("+crc")))
#endif
bool has_instruction() { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
CRC_TARGET inline std::uint32_t step8(std::uint32_t state, std::uint64_t word) {
  return __crc32cd(state, word);
}
CRC_TARGET inline std::uint32_t step1(std::uint32_t state, std::uint8_t byte) {
  return __crc32cb(state, byte);
}
#endif

// Pushes a state through a fixed number of zero bytes, by one lookup per byte of the state.
class ZeroShift {
 public:
  explicit ZeroShift(std::size_t zeros) {
    const std::uint8_t zero = 0;
    for (int byte = 0; byte < 4; ++byte) {
      for (std::uint32_t value = 0; value < 256; ++value) {
        std::uint32_t state = value << (8 * byte);
        for (std::size_t i = 0; i < zeros; ++i) {
          state = update_by_table(state, &zero, 1);
        }
        tables_[byte][value] = state;
      }
    }
  }

  std::uint32_t operator()(std::uint32_t state) const {
    return tables_[0][state & 0xFF] ^ tables_[1][(state >> 8) & 0xFF] ^
           tables_[2][(state >> 16) & 0xFF] ^ tables_[3][state >> 24];
  }

 private:
  std::array<std::array<std::uint32_t, 256>, 4> tables_;
};

inline std::uint64_t word_at(const std::uint8_t* data) {
  std::uint64_t word;
  std::memcpy(&word, data, sizeof word);
  return word;
}

template <std::size_t kStream>
CRC_TARGET std::uint32_t update_three_streams(std::uint32_t state, const std::uint8_t*& data,
                                              std::size_t& size) {
  static const ZeroShift shift(kStream);
  for (; size >= 3 * kStream; data += 3 * kStream, size -= 3 * kStream) {
    std::uint32_t second = 0;
    std::uint32_t third = 0;
    for (std::size_t line = 0; line < kStream; line += kLine) {
      for (std::size_t stream = 0; stream < 3; ++stream) {
        __builtin_prefetch(data + kAhead + stream * kStream + line);
      }
      for (std::size_t i = line; i < line + kLine; i += 8) {
        state = step8(state, word_at(data + i));
        second = step8(second, word_at(data + kStream + i));
        third = step8(third, word_at(data + 2 * kStream + i));
      }
    }
    state = shift(shift(state) ^ second) ^ third;
  }
  return state;
}

CRC_TARGET std::uint32_t update_by_instruction(std::uint32_t state, const std::uint8_t* data,
                                               std::size_t size) {
  state = update_three_streams<kLongStream>(state, data, size);
  state = update_three_streams<kShortStream>(state, data, size);
  for (; size >= 8; data += 8, size -= 8) {
    state = step8(state, word_at(data));
  }
  for (; size > 0; ++data, --size) {
    state = step1(state, *data);
  }
  return state;
}

#else

bool has_instruction() { return false; }
std::uint32_t update_by_instruction(std::uint32_t state, const std::uint8_t* data,
                                    std::size_t size) {
  return update_by_table(state, data, size);
}

#endif

}  // namespace

std::uint32_t crc32c(const std::uint8_t* data, std::size_t size, std::uint32_t before) {
  static const bool instruction = has_instruction();
  return instruction ? ~update_by_instruction(~before, data, size)
                     : crc32c_by_table(data, size, before);
}

std::uint32_t crc32c_by_table(const std::uint8_t* data, std::size_t size, std::uint32_t before) {
  return ~update_by_table(~before, data, size);
}

}  // namespace flash_llm
