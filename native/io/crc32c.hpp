// CRC32C (Castagnoli), with the processor's instruction where it has one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flash_llm {

// Goes on from `before`, the checksum of what comes before the data.
std::uint32_t crc32c(const std::uint8_t* data, std::size_t size, std::uint32_t before = 0);
// The same from tables alone, as processors without the instruction compute it.
std::uint32_t crc32c_by_table(const std::uint8_t* data, std::size_t size, std::uint32_t before = 0);

}  // namespace flash_llm
