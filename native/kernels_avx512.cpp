#include "kernels.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

// From here to the end of the file, so that templates are compiled for the same processor.
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), \
    apply_to = function)
#else
// GCC 12 warns about its own intrinsics, which leave what a full mask hides uninitialized.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif

namespace flash_llm {
namespace {

struct Vec {
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kDotRows = 4;
  static constexpr int kAddTokens = 8;

  static F zero() { return _mm512_setzero_ps(); }
  static F all(float value) { return _mm512_set1_ps(value); }
  static F load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, F value) { _mm512_storeu_ps(to, value); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(F value) { return _mm512_reduce_add_ps(value); }
  static F from_int8(const std::uint8_t* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }
  // The permutation looks at the lowest four bits of an index alone.
  static F from_low_int4(const std::uint8_t* from) {
    return _mm512_permutexvar_ps(indices_at(from), int4_values());
  }
  static F from_high_int4(const std::uint8_t* from) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(indices_at(from), 4), int4_values());
  }
  static __m512i indices_at(const std::uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static F int4_values() {
    return _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  }
  static F from_half(const std::uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static F all_half(const std::uint8_t* from) {
    short bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    return _mm512_cvtph_ps(_mm256_set1_epi16(bits));
  }
};

#include "kernels_body.hpp"

}  // namespace

const Kernels kAvx512Kernels = {"avx512", prepared_bytes, prepare, dot_rows, packed_bytes,
                              pack_rows, packed_dot, add_rows, decode_rows, tile_add};

}  // namespace flash_llm

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
