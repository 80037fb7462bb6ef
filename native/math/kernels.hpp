// Arithmetic on encoded rows, in variants for what the processor can do.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math/activation.hpp"
#include "math/kv_tiles.hpp"

namespace flash_llm {

enum class Codec { kInt8, kInt4, kFp16, kMxfp4 };

// Tokens whose dot products with rows are computed at a time.
constexpr std::int64_t kDotTokens = 4;

// Rows of `dim` values; those of int8, int4 and mxfp4 are padded to whole blocks of 32.
// int8: the values, then one fp16 scale per block.
// int4: 16 bytes per block, whose low halves are its first 16 quants and whose high halves the last
// 16; one uint8 per block, one int8 per block, two fp16. A value is (quant - 8) * scale + offset;
// scale = uint8 * first fp16 / 256, offset = int8 * second fp16 / 128.
// fp16: plain half precision.
// mxfp4: 16 bytes per block, as of int4, and one uint8 per block, the exponent of a float32, 0 for 0. A
// value is (e2m1 of its four bits, times 2, so 0 to 12 and a sign) times 2 to the power of exponent less
// 127. Dot products take it for an int4 value: quants are 12 more, 8 is taken off, and the offset is -4
// times the scale.
// biased: behind all that a float32, which is added to dot products with the row; kernels do not.
// Whoever changes rows, groups or sections counts kStoreFormat on, and store/manifest.py's
// FORMAT_VERSION: a library that was compiled before would compute nonsense without an error.
constexpr int kStoreFormat = 6;

// The quants of mxfp4 by their four bits.
constexpr std::uint8_t kMxfp4Quants[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                           12, 11, 10, 9,  8,  6,  4,  0};

struct RowFormat {
  Codec codec;
  std::int64_t dim;
  bool biased = false;

  std::int64_t blocks() const { return (dim + 31) / 32; }
  std::int64_t padded_dim() const { return 32 * blocks(); }
  std::size_t row_bytes() const {
    return values_bytes() + (biased ? sizeof(float) : 0);
  }
  // Without the bias.
  std::size_t values_bytes() const {
    switch (codec) {
      case Codec::kInt8: return static_cast<std::size_t>(padded_dim() / 32 * 34);
      case Codec::kInt4: return static_cast<std::size_t>(padded_dim() / 32 * 18 + 4);
      case Codec::kMxfp4: return static_cast<std::size_t>(padded_dim() / 32 * 17);
      default: return static_cast<std::size_t>(2 * dim);
    }
  }
};

// The blocks of 32 columns from `first` to before `end`.
struct Columns {
  std::int64_t first;
  std::int64_t end;

  std::int64_t padded() const { return 32 * (end - first); }
};

// Dot products with int8, int4 and mxfp4 rows are of integers. x is rounded by blocks of 32: with peak, the
// block's largest magnitude, and levels, 127 for int4 and mxfp4 rows and 32512 for int8 rows, x becomes
//   steps = x * (levels / peak), rounded to the nearest integer, ties to the even one
//   scale = peak / levels
// all in float32; a block whose peak is below 1e-30 counts as zeros, one with a NaN or an infinity
// has a NaN as its scale. (8 bits of x would cost int8 rows a third more of divergence than their own
// rounding does; for int4 rows it is less than a hundredth.)
//
// A block's sum of quants times steps is exact. Converted to float32 it is multiplied by the product of
// the row's scale and x's; a block of an int4 row has a second term, its offset times (scale of x times
// sum of steps). Every product and every sum is rounded to float32. dot_rows sums the terms in 16 lanes,
// block b in lane b % 16 in ascending order, with quants of int4 less 8, and second terms in 16 lanes of
// their own, which are added to the first; then lanes 8, 4, 2 and 1 apart are added. packed_dot sums the
// terms of one block after the other, the first before the second, with offsets less 8 scales. So both
// are the same bytes on every processor.
//
// Everything else is float32, in an order of each variant. Every result depends on its own row, column
// and token alone, never on how many are passed at once: threads may share a call's rows, columns or
// tokens as they like.
struct Kernels {
  const char* name;

  // The bytes of one token's x in the form that dot products take; a multiple of 64.
  std::size_t (*prepared_bytes)(const RowFormat& format);
  // `prepared`, best on a boundary of 64 bytes, becomes that form of x [dim].
  void (*prepare)(const RowFormat& format, const float* x, std::uint8_t* prepared);

  // out [tokens, count] = row i . x of each token, at most kDotTokens, whose `prepared` lie one behind
  // the other: the same bytes as of a token alone.
  void (*dot_rows)(const RowFormat& format, const std::uint8_t* const* rows, std::int64_t count,
                   const std::uint8_t* prepared, std::int64_t tokens, float* out);
  // The bytes of kDotTokens tokens' x in the form that the dot products of several tokens take; a
  // multiple of 64.
  std::size_t (*tile_bytes)(const RowFormat& format);
  // `tile`, on a boundary of 64 bytes, becomes that form of x [tokens, x_stride], at most kDotTokens.
  void (*prepare_tile)(const RowFormat& format, const float* x, std::int64_t x_stride,
                       std::int64_t tokens, std::uint8_t* tile);
  // Likewise of `count` rows; a multiple of 64.
  std::size_t (*packed_bytes)(const RowFormat& format, std::int64_t count);
  void (*pack_rows)(const RowFormat& format, const std::uint8_t* const* rows, std::int64_t count,
                    std::uint8_t* packed);
  // out[token * out_stride + i] = row i . x of `token` in a tile.
  void (*packed_dot)(const RowFormat& format, const std::uint8_t* packed, std::int64_t count,
                     const std::uint8_t* tile, std::int64_t tokens, float* out,
                     std::int64_t out_stride);

  // out [dim] += h[i] * row i, in order of i, at these columns; no others are touched.
  void (*add_rows)(const RowFormat& format, const std::uint8_t* const* rows, const float* h,
                   std::int64_t count, Columns columns, float* out);
  // tile [blocks of columns, count, 32] = the rows at these columns, zeros behind dim; a single row
  // is in its usual order.
  void (*decode_rows)(const RowFormat& format, const std::uint8_t* const* rows, std::int64_t count,
                      Columns columns, float* tile);
  // out [tokens, dim] += h[token * h_stride + i] * row i, in order of i, at the columns that `tile`
  // holds; no others are touched.
  void (*tile_add)(const RowFormat& format, const float* tile, std::int64_t count, Columns columns,
                   const float* h, std::int64_t h_stride, std::int64_t tokens, float* out);

  // rows [queries, AttendedRow] = what the queries attend to among a segment's tokens, whose tiles
  // lie one after the other; `first` is its first token, before the end of what the last query sees. A
  // query that sees none of them gets a peak of -inf and a total of 0. Each result is the same bytes
  // on every processor. scores: room for float [queries, kSegmentTokens].
  void (*attend)(const KvTiles& tiles, const std::uint8_t* segment, std::int64_t first,
                 const Queries& queries, float* scores, float* rows);

  // z [count] becomes its activation. `threshold`: up to where the kinds of ReLU are 0; others do not
  // use it.
  void (*activate)(Activation activation, float threshold, float* z, std::int64_t count);
};

extern const Kernels kPlainKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvxVnniKernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512VnniKernels;
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
extern const Kernels kNeonDotKernels;
#endif

// What this processor can run, best first, a null pointer at the end.
const Kernels* const* usable_kernels();

// The best of them, or the one that the environment variable FLASH_LLM_ROS_KERNELS names ('plain',
// 'avx2', 'avxvnni', 'avx512', 'avx512vnni', 'neon', 'neondot'); ArgumentError if that cannot run.
const Kernels& choose_kernels();

}  // namespace flash_llm
