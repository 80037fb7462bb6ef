// CRC32C (Castagnoli), with the processor's instruction where it has one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flash_llm {

std::uint32_t crc32c(const std::uint8_t* data, std::size_t size);
// The same from tables alone, as processors without the instruction compute it.
std::uint32_t crc32c_by_table(const std::uint8_t* data, std::size_t size);

}  // namespace flash_llm
