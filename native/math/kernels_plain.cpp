// What every processor runs, in plain C++: vectors of four by the compiler's own types.
#include "math/kernels.hpp"

namespace flash_llm {
namespace {

struct Vec {
  using F = float __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kDotRows = 2;
  static constexpr int kAddTokens = 4;
  static constexpr int kAddRows = 4;

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
  static F from_low_mxfp4(const std::uint8_t* from) {
    return F{mxfp4(from[0]), mxfp4(from[1]), mxfp4(from[2]), mxfp4(from[3])};
  }
  static F from_high_mxfp4(const std::uint8_t* from) {
    return F{mxfp4(from[0] >> 4), mxfp4(from[1] >> 4), mxfp4(from[2] >> 4), mxfp4(from[3] >> 4)};
  }
  static F from_half(const std::uint8_t* from) {
    return F{half_at(from), half_at(from + 2), half_at(from + 4), half_at(from + 6)};
  }
  // The first `count` of them, zeros behind.
  static F from_some_halves(const std::uint8_t* from, std::int64_t count) {
    if (count >= kLanes) {
      return from_half(from);
    }
    std::uint8_t halves[2 * kLanes] = {};
    for (std::int64_t i = 0; i < 2 * count; ++i) {
      halves[i] = from[i];
    }
    return from_half(halves);
  }
  static F all_half(const std::uint8_t* from) { return all(half_at(from)); }
  // The first `count` of them, zeros behind.
  static F from_some_uint8(const std::uint8_t* from, std::int64_t count) {
    F values = zero();
    for (std::int64_t i = 0; i < kLanes && i < count; ++i) {
      values[i] = from[i];
    }
    return values;
  }
  static F from_some_int8(const std::uint8_t* from, std::int64_t count) {
    F values = zero();
    for (std::int64_t i = 0; i < kLanes && i < count; ++i) {
      values[i] = int8_at(from + i);
    }
    return values;
  }

  static F from_some_exponents(const std::uint8_t* from, std::int64_t count) {
    std::uint32_t bits[kLanes] = {};
    for (std::int64_t i = 0; i < kLanes && i < count; ++i) {
      bits[i] = static_cast<std::uint32_t>(from[i]) << 23;
    }
    F values;
    __builtin_memcpy(&values, bits, sizeof values);
    return values;
  }

  static float mxfp4(int bits) { return static_cast<float>(kMxfp4Quants[bits & 15] - 8); }
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

#include "math/kernels_float_body.hpp"
#include "math/kernels_half_body.hpp"
#include "math/kernels_rounding_body.hpp"

struct Pairs {
  struct Sum {
    std::int32_t lanes[4];
  };
  struct Eight {
    std::int16_t values[8];
  };

  static Sum zero() { return {}; }
  template <typename Value>
  static Eight load(const Value* from) {
    Eight loaded;
    for (int i = 0; i < 8; ++i) {
      loaded.values[i] = from[i];
    }
    return loaded;
  }
  static Eight all(const std::int16_t* pair) {
    Eight loaded;
    for (int i = 0; i < 8; ++i) {
      loaded.values[i] = pair[i % 2];
    }
    return loaded;
  }
  static Sum add_dot(Sum sum, const Eight& pairs, const Eight& factors) {
    for (int i = 0; i < 8; ++i) {
      sum.lanes[i / 2] += pairs.values[i] * factors.values[i];
    }
    return sum;
  }
  static F to_float(const Sum& sum) {
    return F{static_cast<float>(sum.lanes[0]), static_cast<float>(sum.lanes[1]),
             static_cast<float>(sum.lanes[2]), static_cast<float>(sum.lanes[3])};
  }
};

// A block's sum needs no adding up.
struct WholeSums {
  using Partial = std::int32_t;
  using Weights = const std::uint8_t*;

  static Weights unpack(const std::uint8_t* block) { return block; }
  static Partial zero() { return 0; }
  static F sums(const Partial* four) {
    return F{static_cast<float>(four[0]), static_cast<float>(four[1]), static_cast<float>(four[2]),
             static_cast<float>(four[3])};
  }
};

struct Int4Dot : WholeSums {
  using Row = Int4Row;
  static constexpr std::int64_t kXBytes = 32;
  static constexpr std::int64_t kBlockBytes = 16;
  static constexpr float kLevels = kInt4Levels;

  static void put_x(const std::int32_t* steps, std::uint8_t* x) {
    for (int i = 0; i < kBlock; ++i) {
      x[i] = static_cast<std::uint8_t>(steps[i]);
    }
  }
  static Partial dot(Weights weights, const std::uint8_t* x) {
    std::int32_t sum = 0;
    for (int i = 0; i < 16; ++i) {
      sum += (weights[i] & 15) * static_cast<std::int8_t>(x[i]) +
             (weights[i] >> 4) * static_cast<std::int8_t>(x[16 + i]);
    }
    return sum;
  }
};

struct Mxfp4Dot : Int4Dot {
  using Row = Mxfp4Row;

  static Partial dot(Weights weights, const std::uint8_t* x) {
    std::int32_t sum = 0;
    for (int i = 0; i < 16; ++i) {
      sum += kMxfp4Quants[weights[i] & 15] * static_cast<std::int8_t>(x[i]) +
             kMxfp4Quants[weights[i] >> 4] * static_cast<std::int8_t>(x[16 + i]);
    }
    return sum;
  }
};

struct Int8Dot : WholeSums {
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
    std::int32_t sum = 0;
    for (int i = 0; i < kBlock; ++i) {
      sum += static_cast<std::int8_t>(weights[i]) * reinterpret_cast<const std::int16_t*>(x)[i];
    }
    return sum;
  }
};

#include "math/kernels_narrow_body.hpp"
#include "math/exponentials_body.hpp"
#include "math/kernels_activation_body.hpp"
#include "math/kernels_attention_body.hpp"
#include "math/kernels_table_body.hpp"

}  // namespace

const Kernels kPlainKernels = kernels_named("plain");

}  // namespace flash_llm
