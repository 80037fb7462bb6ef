// What every processor runs: vectors of four by the compiler's own types (NEON on ARM, SSE2 on x86).
#include "kernels.hpp"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace flash_llm {
namespace {

struct VecOfFour {
  static constexpr int kLanes = 4;
  static constexpr int kDotRows = 2;
  static constexpr int kAddTokens = 4;
};

#if defined(__aarch64__)

struct Vec : VecOfFour {
  using F = float32x4_t;

  static F zero() { return vdupq_n_f32(0); }
  static F all(float value) { return vdupq_n_f32(value); }
  static F load(const float* from) { return vld1q_f32(from); }
  static void store(float* to, F value) { vst1q_f32(to, value); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static float sum(F value) { return vaddvq_f32(value); }
  static F from_int8(const std::uint8_t* from) {
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(four_bytes(from)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  }
  static F from_low_int4(const std::uint8_t* from) {
    return less_eight(vand_u8(four_bytes(from), vdup_n_u8(15)));
  }
  static F from_high_int4(const std::uint8_t* from) {
    return less_eight(vshr_n_u8(four_bytes(from), 4));
  }
  static uint8x8_t four_bytes(const std::uint8_t* from) {
    std::uint32_t bytes;
    __builtin_memcpy(&bytes, from, sizeof bytes);
    return vreinterpret_u8_u32(vdup_n_u32(bytes));
  }
  static F less_eight(uint8x8_t values) {
    const int8x8_t lower = vsub_s8(vreinterpret_s8_u8(values), vdup_n_s8(8));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(lower))));
  }
  static F from_half(const std::uint8_t* from) {
    float16x4_t halves;
    __builtin_memcpy(&halves, from, sizeof halves);
    return vcvt_f32_f16(halves);
  }
  static F all_half(const std::uint8_t* from) {
    __fp16 half;
    __builtin_memcpy(&half, from, sizeof half);
    return all(half);
  }
};

#else

struct Vec : VecOfFour {
  using F = float __attribute__((vector_size(16)));

  static F zero() { return F{}; }
  static F all(float value) { return F{value, value, value, value}; }
  static F load(const float* from) {
    F value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }
  static void store(float* to, F value) { __builtin_memcpy(to, &value, sizeof value); }
  static F add(F a, F b) { return a + b; }
  static F mul(F a, F b) { return a * b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static float sum(F value) { return (value[0] + value[2]) + (value[1] + value[3]); }
  static F from_int8(const std::uint8_t* from) {
    return F{int8_at(from), int8_at(from + 1), int8_at(from + 2), int8_at(from + 3)};
  }
  static F from_low_int4(const std::uint8_t* from) {
    return F{low_at(from), low_at(from + 1), low_at(from + 2), low_at(from + 3)};
  }
  static F from_high_int4(const std::uint8_t* from) {
    return F{high_at(from), high_at(from + 1), high_at(from + 2), high_at(from + 3)};
  }
  static F from_half(const std::uint8_t* from) {
    return F{half_at(from), half_at(from + 2), half_at(from + 4), half_at(from + 6)};
  }
  static F all_half(const std::uint8_t* from) { return all(half_at(from)); }

  static float int8_at(const std::uint8_t* from) { return static_cast<std::int8_t>(*from); }
  static float low_at(const std::uint8_t* from) { return static_cast<float>((*from & 15) - 8); }
  static float high_at(const std::uint8_t* from) { return static_cast<float>((*from >> 4) - 8); }
  static float half_at(const std::uint8_t* from) {
    const std::uint32_t half = from[0] | static_cast<std::uint32_t>(from[1]) << 8;
    const std::uint32_t magnitude = half & 0x7FFF;
    // No float32 subnormals on the way: a thread may have been set to flush them.
    float value = static_cast<float>(magnitude) * 0x1p-24f;
    if (magnitude >= 0x0400) {
      const std::uint32_t bits = (magnitude << 13) + (112u << 23);
      __builtin_memcpy(&value, &bits, sizeof value);
    }
    return (half & 0x8000) != 0 ? -value : value;
  }
};

#endif

#include "kernels_body.hpp"

}  // namespace

const Kernels kPlainKernels = {"plain", prepared_bytes, prepare, dot_rows, packed_bytes,
                              pack_rows, packed_dot, add_rows, decode_rows, tile_add};

}  // namespace flash_llm
