#include "math/kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

// From here to the end of the file, so that templates are compiled for the same processor.
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

namespace flash_llm {
namespace {

#include "math/avx2_vectors.hpp"
#include "math/kernels_float_body.hpp"
#include "math/kernels_half_body.hpp"
#include "math/kernels_rounding_body.hpp"

// Sums of eight products of a nibble and a step of x stay below 2^15.
struct Ints : Vec256Ints {
  static I dot_nibbles(I low, I x_low, I high, I x_high) {
    return end_nibbles_dot(add_nibbles_dot(_mm256_maddubs_epi16(low, x_low), high, x_high));
  }
  static I add_pairs_dot(I sum, I a, I b) { return add(sum, _mm256_madd_epi16(a, b)); }
  static I add_nibbles_dot(I sums, I nibbles, I x) {
    return _mm256_add_epi16(sums, _mm256_maddubs_epi16(nibbles, x));
  }
  static I end_nibbles_dot(I sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
};

#include "math/kernels_wide_body.hpp"
#include "math/kernels_wide_packed_body.hpp"
#include "math/kernels_wide_pairs_body.hpp"
#include "math/exponentials_body.hpp"
#include "math/kernels_activation_body.hpp"
#include "math/kernels_attention_body.hpp"
#include "math/kernels_table_body.hpp"

}  // namespace

const Kernels kAvx2Kernels = kernels_named("avx2");

}  // namespace flash_llm

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
