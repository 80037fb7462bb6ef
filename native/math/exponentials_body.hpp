// e to the power of some numbers at once, the same bytes on every processor; without an include guard,
// since each variant of the kernels has its own copy (kernels_float_body.hpp says why).

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// x [kCount] = e to its power, at most 89; above 88.4 that is infinite, below -87 as at -87.
template <std::int64_t kCount>
inline void exponentials(float* x) {
  // Unrolled before it becomes vectors a loop takes values one by one; in one loop with the rest the
  // comparison becomes a branch.
#pragma GCC unroll 1
  for (std::int64_t i = 0; i < kCount; ++i) {
    x[i] = x[i] < -87.0f ? -87.0f : x[i];
  }
#pragma GCC unroll 1
  for (std::int64_t i = 0; i < kCount; ++i) {
    const float shifted = x[i] * 1.44269504f + 0x1.8p23f;   // a whole number in the lowest bits
    const float twos = shifted - 0x1.8p23f;
    const float r = (x[i] - twos * 0.693359375f) - twos * -2.12194440e-4f;
    float sum = 1.9875691500e-4f * r + 1.3981999507e-3f;
    sum = sum * r + 8.3334519073e-3f;
    sum = sum * r + 4.1665795894e-2f;
    sum = sum * r + 1.6666665459e-1f;
    sum = sum * r + 5.0000001201e-1f;
    x[i] = ((sum * r) * r + r + 1.0f) * float_of((bits_of(shifted) + 127u) << 23);
  }
}
