#include "math/kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

// From here to the end of the file, so that templates are compiled for the same processor.
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,f16c,avxvnni"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

namespace flash_llm {
namespace {

#include "math/avx2_vectors.hpp"
#include "math/kernels_float_body.hpp"
#include "math/kernels_half_body.hpp"
#include "math/kernels_rounding_body.hpp"

struct Ints : Vec256Ints {
  static I dot_nibbles(I low, I x_low, I high, I x_high) {
    return _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(zero(), low, x_low), high, x_high);
  }
  static I add_pairs_dot(I sum, I a, I b) { return _mm256_dpwssd_avx_epi32(sum, a, b); }
  static I add_nibbles_dot(I sum, I nibbles, I x) {
    return _mm256_dpbusd_avx_epi32(sum, nibbles, x);
  }
  static I end_nibbles_dot(I sum) { return sum; }
};

#include "math/kernels_wide_body.hpp"
#include "math/kernels_wide_packed_body.hpp"
#include "math/kernels_wide_pairs_body.hpp"
#include "math/exponentials_body.hpp"
#include "math/kernels_activation_body.hpp"
#include "math/kernels_attention_body.hpp"
#include "math/kernels_table_body.hpp"

}  // namespace

const Kernels kAvxVnniKernels = kernels_named("avxvnni");

}  // namespace flash_llm

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
