// Kernels for every ARM processor of 64 bits.
#include "math/kernels.hpp"

#if defined(__aarch64__)
#include <arm_neon.h>

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
  // Products of a quant and a step stay below 3049, so that eight of them fit in 16 bits.
  static Partial dot(Weights weights, const std::uint8_t* x) {
    const auto [low, high] = weights;
    const int8x16_t x_low = vld1q_s8(reinterpret_cast<const std::int8_t*>(x));
    const int8x16_t x_high = vld1q_s8(reinterpret_cast<const std::int8_t*>(x) + 16);
    int16x8_t sums = vmull_s8(vget_low_s8(low), vget_low_s8(x_low));
    sums = vmlal_high_s8(sums, low, x_low);
    sums = vmlal_s8(sums, vget_low_s8(high), vget_low_s8(x_high));
    sums = vmlal_high_s8(sums, high, x_high);
    return vpaddlq_s16(sums);
  }
};

using Int4Dot = FourBitDot<Int4Row, Int4Weights>;
using Mxfp4Dot = FourBitDot<Mxfp4Row, Mxfp4Weights>;

struct Int8Dot : QuarterSums, Int8Weights {
  using Row = Int8Row;
  static constexpr std::int64_t kXBytes = 64;
  static constexpr std::int64_t kBlockBytes = 32;
  static constexpr float kLevels = kInt8Levels;

  static void put_x(const std::int32_t* steps, std::uint8_t* x) {
    for (int i = 0; i < kBlock; ++i) {
      reinterpret_cast<std::int16_t*>(x)[i] = static_cast<std::int16_t>(steps[i]);
    }
  }
  static Partial dot(Weights weights, const std::uint8_t* x) {
    int32x4_t even = vdupq_n_s32(0);
    int32x4_t odd = vdupq_n_s32(0);
    for (int i = 0; i < kBlock; i += 8) {
      const int8x16_t half = i < 16 ? weights.first : weights.last;
      const int16x8_t wide = i % 16 == 0 ? vmovl_s8(vget_low_s8(half)) : vmovl_high_s8(half);
      const int16x8_t values = vld1q_s16(reinterpret_cast<const std::int16_t*>(x) + i);
      even = vmlal_s16(even, vget_low_s16(wide), vget_low_s16(values));
      odd = vmlal_high_s16(odd, wide, values);
    }
    return vaddq_s32(even, odd);
  }
};

#include "math/kernels_narrow_body.hpp"
#include "math/exponentials_body.hpp"
#include "math/kernels_activation_body.hpp"
#include "math/kernels_attention_body.hpp"
#include "math/kernels_table_body.hpp"

}  // namespace

const Kernels kNeonKernels = kernels_named("neon");

}  // namespace flash_llm
#endif
