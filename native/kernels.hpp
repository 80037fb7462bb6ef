// Arithmetic on encoded rows, in variants for what the processor can do.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flash_llm {

enum class Codec { kInt8, kInt4, kFp16 };

// Rows of `dim` values. int8 and int4: values padded to whole blocks of 32, then one fp16 scale per
// block; an int4 block is 16 bytes, whose low halves are its first 16 values plus 8 and whose high
// halves the last 16. fp16: plain half precision.
struct RowFormat {
  Codec codec;
  std::int64_t dim;

  std::int64_t padded_dim() const { return (dim + 31) / 32 * 32; }
  std::size_t row_bytes() const {
    switch (codec) {
      case Codec::kInt8: return static_cast<std::size_t>(padded_dim() / 32 * 34);
      case Codec::kInt4: return static_cast<std::size_t>(padded_dim() / 32 * 18);
      default: return static_cast<std::size_t>(2 * dim);
    }
  }
};

// Every result depends on its own row and token alone, never on how many are passed at once.
struct Kernels {
  const char* name;

  // out[i] = row i . x, for x [dim].
  void (*dot_rows)(const RowFormat& format, const std::uint8_t* const* rows, std::int64_t count,
                   const float* x, float* out);
  // out [dim] += h[i] * row i, in order.
  void (*add_rows)(const RowFormat& format, const std::uint8_t* const* rows, const float* h,
                   std::int64_t count, float* out);
  // tile [count, padded_dim] = the rows, zeros behind dim.
  void (*decode_rows)(const RowFormat& format, const std::uint8_t* const* rows, std::int64_t count,
                      float* tile);
  // out[token * out_stride + i] = tile row i . x row `token`, for x [tokens, dim].
  void (*tile_dot)(const RowFormat& format, const float* tile, std::int64_t count, const float* x,
                   std::int64_t tokens, float* out, std::int64_t out_stride);
  // out [tokens, dim] += h[token * h_stride + i] * tile row i, in order of i.
  void (*tile_add)(const RowFormat& format, const float* tile, std::int64_t count, const float* h,
                   std::int64_t h_stride, std::int64_t tokens, float* out);
};

extern const Kernels kPlainKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// The best variant for this processor, or the one the environment variable
// FLASH_LLM_ROS_KERNELS names ('plain', 'avx2', 'avx512'); ArgumentError if that cannot run here.
const Kernels& choose_kernels();

}  // namespace flash_llm
