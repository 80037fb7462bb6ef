// How x is rounded for the dot products of int8 and int4 rows; kernels.hpp says the rule.

constexpr float kLeastPeak = 1e-30f;
constexpr float kInt4Levels = 127;
constexpr float kInt8Levels = 127 * 256;  // both bytes of a value then fit in int8

// What the values of blocks are at quant 0; the product is exact.
inline F least_of(F scales, F offsets) { return Vec::add(Vec::mul(scales, Vec::all(-8)), offsets); }

// Lanes in which one token's dot product is summed up: block b in lane b modulo so many.
constexpr std::int64_t kSumLanes = 16;

inline std::int32_t sum_of_steps(const std::int32_t* steps) {
  std::int32_t sum = 0;
  for (int i = 0; i < kBlock; ++i) {
    sum += steps[i];
  }
  return sum;
}

// steps [32] = x [32] divided by the scale, rounded; returns the scale.
inline float round_whole_block(const float* x, float levels, std::int32_t* steps) {
  std::uint32_t bits[kBlock];
  __builtin_memcpy(bits, x, sizeof bits);
  std::uint32_t top = 0;
  for (int i = 0; i < kBlock; ++i) {
    const std::uint32_t magnitude = bits[i] & 0x7FFFFFFF;
    top = top < magnitude ? magnitude : top;
  }
  float peak;
  __builtin_memcpy(&peak, &top, sizeof peak);
  if (top >= 0x7F800000 || peak < kLeastPeak) {
    __builtin_memset(steps, 0, kBlock * sizeof *steps);
    return top >= 0x7F800000 ? __builtin_nanf("") : 0;
  }
  const float inverse = levels / peak;
  for (int i = 0; i < kBlock; ++i) {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to the even one.
    steps[i] = static_cast<std::int32_t>((x[i] * inverse + 0x1.8p23f) - 0x1.8p23f);
  }
  return peak / levels;
}

// Likewise of the first `count` values of x, zeros behind.
inline float round_block(const float* x, std::int64_t count, float levels, std::int32_t* steps) {
  return count < kBlock ? round_whole_block(Tail(x, count).values, levels, steps)
                        : round_whole_block(x, levels, steps);
}
