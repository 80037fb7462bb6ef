// Kernels for ARM processors with dot products of bytes (Cortex-A75 and later).
#include "math/kernels.hpp"

#if defined(__aarch64__)
#include <arm_neon.h>

// From here to the end of the file, so that templates are compiled for the same processor.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")     // as GCC's arm_neon.h has it
#endif

namespace flash_llm {
namespace {

#include "math/neon_vectors.hpp"
#include "math/kernels_float_body.hpp"
#include "math/kernels_half_body.hpp"
#include "math/kernels_rounding_body.hpp"

template <typename RowOf4, typename WeightsOf4>
struct FourBitDot : QuarterSums, WeightsOf4 {
  using Row = RowOf4;
  using Weights = BlockWeights;
  static constexpr std::int64_t kXBytes = 32;
  static constexpr std::int64_t kBlockBytes = 16;
  static constexpr float kLevels = kInt4Levels;

  static void put_x(const std::int32_t* steps, std::uint8_t* x) {
    for (int i = 0; i < kBlock; ++i) {
      x[i] = static_cast<std::uint8_t>(steps[i]);
    }
  }
  static Partial dot(Weights weights, const std::uint8_t* x) {
    const int32x4_t sum = vdotq_s32(vdupq_n_s32(0), weights.first, load_int8(x));
    return vdotq_s32(sum, weights.last, load_int8(x + 16));
  }
};

using Int4Dot = FourBitDot<Int4Row, Int4Weights>;
using Mxfp4Dot = FourBitDot<Mxfp4Row, Mxfp4Weights>;

// x: the high bytes of the 32 values, then the low ones, so that 256 * high + low is the value.
struct Int8Dot : QuarterSums, Int8Weights {
  using Row = Int8Row;
  static constexpr std::int64_t kXBytes = 64;
  static constexpr std::int64_t kBlockBytes = 32;
  static constexpr float kLevels = kInt8Levels;

  static void put_x(const std::int32_t* steps, std::uint8_t* x) {
    for (int i = 0; i < kBlock; ++i) {
      const std::int32_t low = ((steps[i] + 128) & 255) - 128;
      x[i] = static_cast<std::uint8_t>((steps[i] - low) / 256);
      x[kBlock + i] = static_cast<std::uint8_t>(low);
    }
  }
  static Partial dot(Weights weights, const std::uint8_t* x) {
    const auto [first, last] = weights;
    int32x4_t high = vdotq_s32(vdupq_n_s32(0), first, load_int8(x));
    high = vshlq_n_s32(vdotq_s32(high, last, load_int8(x + 16)), 8);
    const int32x4_t sum = vdotq_s32(high, first, load_int8(x + 32));
    return vdotq_s32(sum, last, load_int8(x + 48));
  }
};

#include "math/kernels_narrow_body.hpp"
#include "math/exponentials_body.hpp"
#include "math/kernels_activation_body.hpp"
#include "math/kernels_attention_body.hpp"
#include "math/kernels_table_body.hpp"

}  // namespace

const Kernels kNeonDotKernels = kernels_named("neondot");

}  // namespace flash_llm

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
