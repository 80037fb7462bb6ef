// Activation functions: of many values at once, since calls of the C library took a fifth of a prompt.

constexpr std::int64_t kPowers = 16;

// z [kPowers] becomes z / (1 + e to the power of rising(z)).
template <typename Rising>
inline void sigmoid_times_some(float* z, Rising rising) {
  float powers[kPowers];
#pragma GCC unroll 1
  for (std::int64_t i = 0; i < kPowers; ++i) {
    const float power = rising(z[i]);
    powers[i] = power > 89 ? 89 : power;
  }
  exponentials<kPowers>(powers);
#pragma GCC unroll 1
  for (std::int64_t i = 0; i < kPowers; ++i) {
    z[i] /= 1 + powers[i];
  }
}

template <typename Rising>
inline void sigmoid_times(float* z, std::int64_t count, Rising rising) {
  std::int64_t i = 0;
  for (; i + kPowers <= count; i += kPowers) {
    sigmoid_times_some(z + i, rising);
  }
  float rest[kPowers] = {};
  copy_floats(rest, z + i, count - i);
  sigmoid_times_some(rest, rising);
  copy_floats(z + i, rest, count - i);
}

template <typename Function>
inline void each_value(float* z, std::int64_t count, Function function) {
  for (std::int64_t i = 0; i < count; ++i) {
    z[i] = function(z[i]);
  }
}

void activate(Activation activation, float threshold, float* z, std::int64_t count) {
  switch (activation) {
    case Activation::kNone: return;
    case Activation::kSilu: return sigmoid_times(z, count, [](float value) { return -value; });
    case Activation::kGelu:
      return each_value(z, count, [](float value) {
        return 0.5f * value * (1 + __builtin_erff(value * 0.70710678f));
      });
    // arXiv 1606.08415, section 2; 1.5957691 is twice the root of 2 / pi, since 1 + tanh(y) is twice
    // the sigmoid of 2 y.
    case Activation::kGeluTanh:
      return sigmoid_times(z, count, [](float value) {
        return -1.5957691f * (value + 0.044715f * value * value * value);
      });
    case Activation::kRelu:
      return each_value(z, count, [=](float value) { return value > threshold ? value : 0; });
    case Activation::kRelu2:
      return each_value(z, count,
                        [=](float value) { return value > threshold ? value * value : 0; });
    case Activation::kClampedSwiglu:
      each_value(z, count, [](float value) { return value > kSwigluLimit ? kSwigluLimit : value; });
      return sigmoid_times(z, count, [](float value) { return -kSwigluSlope * value; });
  }
}
