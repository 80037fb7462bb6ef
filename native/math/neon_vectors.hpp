// NEON vectors for the kernels' bodies; no include guard, for the reason told there.

struct Vec {
  using F = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kDotRows = 2;
  static constexpr int kAddTokens = 4;
  static constexpr int kAddRows = 4;

  static F zero() { return vdupq_n_f32(0); }
  static F all(float value) { return vdupq_n_f32(value); }
  static F load(const float* from) { return vld1q_f32(from); }
  static void store(float* to, F value) { vst1q_f32(to, value); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static float sum(F value) {
    const float32x2_t half = vadd_f32(vget_low_f32(value), vget_high_f32(value));
    return vget_lane_f32(half, 0) + vget_lane_f32(half, 1);
  }
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
  static F from_low_mxfp4(const std::uint8_t* from) {
    return less_eight(mxfp4_quants(vand_u8(four_bytes(from), vdup_n_u8(15))));
  }
  static F from_high_mxfp4(const std::uint8_t* from) {
    return less_eight(mxfp4_quants(vshr_n_u8(four_bytes(from), 4)));
  }
  static uint8x8_t mxfp4_quants(uint8x8_t nibbles) {
    return vqtbl1_u8(vld1q_u8(kMxfp4Quants), nibbles);
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
  // The first `count` of them, at least one, zeros behind. Of fewer than a vector's, those that end
  // there are read and shifted: a row's quants lie before them.
  static F from_some_halves(const std::uint8_t* from, std::int64_t count) {
    if (count >= kLanes) {
      return from_half(from);
    }
    std::uint64_t halves;
    __builtin_memcpy(&halves, from - 2 * (kLanes - count), sizeof halves);
    return vcvt_f32_f16(vreinterpret_f16_u64(vdup_n_u64(halves >> 16 * (kLanes - count))));
  }
  static F from_some_uint8(const std::uint8_t* from, std::int64_t count) {
    return from_uint8(some_bytes(from, count));
  }
  static F from_some_int8(const std::uint8_t* from, std::int64_t count) {
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(some_bytes(from, count)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  }
  static F from_some_exponents(const std::uint8_t* from, std::int64_t count) {
    const uint32x4_t exponents = vmovl_u16(vget_low_u16(vmovl_u8(some_bytes(from, count))));
    return vreinterpretq_f32_u32(vshlq_n_u32(exponents, 23));
  }
  static uint8x8_t some_bytes(const std::uint8_t* from, std::int64_t count) {
    if (count >= kLanes) {
      return four_bytes(from);
    }
    std::uint32_t bytes;
    __builtin_memcpy(&bytes, from - (kLanes - count), sizeof bytes);
    return vreinterpret_u8_u32(vdup_n_u32(bytes >> 8 * (kLanes - count)));
  }
  static F from_uint8(uint8x8_t bytes) {
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
  }
  static F all_half(const std::uint8_t* from) {
    __fp16 half;
    __builtin_memcpy(&half, from, sizeof half);
    return all(half);
  }
};

struct Pairs {
  using Sum = int32x4_t;

  static Sum zero() { return vdupq_n_s32(0); }
  static int16x8_t load(const std::int8_t* from) { return vmovl_s8(vld1_s8(from)); }
  static int16x8_t load(const std::int16_t* from) { return vld1q_s16(from); }
  static int16x8_t all(const std::int16_t* pair) {
    std::int32_t both;
    __builtin_memcpy(&both, pair, sizeof both);
    return vreinterpretq_s16_s32(vdupq_n_s32(both));
  }
  static Sum add_dot(Sum sum, int16x8_t pairs, int16x8_t factors) {
    const int32x4_t low = vmull_s16(vget_low_s16(pairs), vget_low_s16(factors));
    return vaddq_s32(sum, vpaddq_s32(low, vmull_high_s16(pairs, factors)));
  }
  static Vec::F to_float(Sum sum) { return vcvtq_f32_s32(sum); }
};

// A block's sum in four parts, and the sums of four blocks.
struct QuarterSums {
  using Partial = int32x4_t;

  static Partial zero() { return vdupq_n_s32(0); }
  static Vec::F sums(const Partial* four) {
    return vcvtq_f32_s32(vpaddq_s32(vpaddq_s32(four[0], four[1]), vpaddq_s32(four[2], four[3])));
  }
};

inline int8x16_t load_int8(const std::uint8_t* from) {
  return vld1q_s8(reinterpret_cast<const std::int8_t*>(from));
}

// A block's quants in both halves.
struct BlockWeights {
  int8x16_t first;
  int8x16_t last;
};

struct Int4Weights {
  using Weights = BlockWeights;
  static Weights unpack(const std::uint8_t* block) {
    const uint8x16_t bytes = vld1q_u8(block);
    return {vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))),
            vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4))};
  }
};

struct Mxfp4Weights {
  using Weights = BlockWeights;
  static Weights unpack(const std::uint8_t* block) {
    const uint8x16_t bytes = vld1q_u8(block);
    const uint8x16_t quants = vld1q_u8(kMxfp4Quants);
    return {vreinterpretq_s8_u8(vqtbl1q_u8(quants, vandq_u8(bytes, vdupq_n_u8(15)))),
            vreinterpretq_s8_u8(vqtbl1q_u8(quants, vshrq_n_u8(bytes, 4)))};
  }
};

struct Int8Weights {
  using Weights = BlockWeights;
  static Weights unpack(const std::uint8_t* block) {
    return {load_int8(block), load_int8(block + 16)};
  }
};
