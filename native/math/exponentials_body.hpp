// e to the power of some numbers at once, the same bytes on every processor; without an include guard,
// since each variant of the kernels has its own copy (kernels_float_body.hpp says why).

// x [kCount] = e to its power, at most 89; above 88.4 that is infinite, below -87 as at -87.
template <std::int64_t kCount>
inline void exponentials(float* x) {
  float powers[kCount];
  float shifted[kCount];
  float rest[kCount];
  // A loop of its own, or compilers make a branch of it.
  for (std::int64_t i = 0; i < kCount; ++i) {
    powers[i] = x[i] < -87.0f ? -87.0f : x[i];
  }
  for (std::int64_t i = 0; i < kCount; ++i) {
    shifted[i] = powers[i] * 1.44269504f + 0x1.8p23f;   // a whole number in the lowest bits
    const float twos = shifted[i] - 0x1.8p23f;
    rest[i] = (powers[i] - twos * 0.693359375f) - twos * -2.12194440e-4f;
  }
  std::uint32_t bits[kCount];
  __builtin_memcpy(bits, shifted, sizeof bits);
  for (std::int64_t i = 0; i < kCount; ++i) {
    bits[i] = (bits[i] + 127u) << 23;
  }
  float scales[kCount];
  __builtin_memcpy(scales, bits, sizeof scales);
  for (std::int64_t i = 0; i < kCount; ++i) {
    const float r = rest[i];
    float sum = 1.9875691500e-4f * r + 1.3981999507e-3f;
    sum = sum * r + 8.3334519073e-3f;
    sum = sum * r + 4.1665795894e-2f;
    sum = sum * r + 1.6666665459e-1f;
    sum = sum * r + 5.0000001201e-1f;
    x[i] = ((sum * r) * r + r + 1.0f) * scales[i];
  }
}
