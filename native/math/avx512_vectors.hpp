// Vectors of 512 bits for the kernels' bodies; no include guard, for the reason told there.

struct Vec {
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kDotRows = 4;
  static constexpr int kAddTokens = 8;
  static constexpr int kAddRows = 8;

  static F zero() { return _mm512_setzero_ps(); }
  static F all(float value) { return _mm512_set1_ps(value); }
  static F load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, F value) { _mm512_storeu_ps(to, value); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  // Lanes l and l + 8, then those 4, 2 and 1 apart.
  static float sum(F value) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(value),
                                      _mm512_extractf32x8_ps(value, 1));
    __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
  }
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
  static F from_low_mxfp4(const std::uint8_t* from) {
    return _mm512_permutexvar_ps(indices_at(from), mxfp4_values());
  }
  static F from_high_mxfp4(const std::uint8_t* from) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(indices_at(from), 4), mxfp4_values());
  }
  static F mxfp4_values() {
    const __m128i quants = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kMxfp4Quants));
    return _mm512_cvtepi32_ps(
        _mm512_sub_epi32(_mm512_cvtepu8_epi32(quants), _mm512_set1_epi32(8)));
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
  // The first `count` of them, zeros behind.
  static F from_some_halves(const std::uint8_t* from, std::int64_t count) {
    if (count >= kLanes) {
      return from_half(from);
    }
    const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from));
  }
  static F from_some_uint8(const std::uint8_t* from, std::int64_t count) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(some_bytes(from, count)));
  }
  static F from_some_int8(const std::uint8_t* from, std::int64_t count) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(some_bytes(from, count)));
  }
  static F from_some_exponents(const std::uint8_t* from, std::int64_t count) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu8_epi32(some_bytes(from, count)), 23));
  }
  static __m128i some_bytes(const std::uint8_t* from, std::int64_t count) {
    const std::uint32_t mask = count >= kLanes ? 0xFFFF : (1u << count) - 1;
    return _mm_maskz_loadu_epi8(static_cast<__mmask16>(mask), from);
  }
};

struct Vec512Ints {
  using I = __m512i;
  static constexpr int kBytes = 64;
  static constexpr int kStrips = 2;

  static I zero() { return _mm512_setzero_si512(); }
  static I load(const void* from) { return _mm512_loadu_si512(from); }
  // Half as many bytes as int16.
  static I widened(const void* from) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
  }
  // The first `count` bytes, fewer than 64, zeros behind.
  static I load_some(const std::uint8_t* from, std::int64_t count) {
    return _mm512_maskz_loadu_epi8((std::uint64_t{1} << count) - 1, from);
  }
  static void store(void* to, I value) { _mm512_storeu_si512(to, value); }
  static I all_four_bytes(const std::uint8_t* from) {
    std::int32_t bytes;
    __builtin_memcpy(&bytes, from, sizeof bytes);
    return _mm512_set1_epi32(bytes);
  }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I low_nibbles(I bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
  static I high_nibbles(I bytes) { return low_nibbles(_mm512_srli_epi16(bytes, 4)); }
  static I mxfp4_quants(I nibbles) {
    const __m128i quants = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kMxfp4Quants));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(quants), nibbles);
  }
  static I even_int8(I bytes) { return _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8); }
  static I odd_int8(I bytes) { return _mm512_srai_epi16(bytes, 8); }
  static Vec::F to_float(I value) { return _mm512_cvtepi32_ps(value); }
  static Vec::F as_float(I value) { return _mm512_castsi512_ps(value); }
  static I as_ints(Vec::F value) { return _mm512_castps_si512(value); }
  // The sums of blocks in quarters of vectors -> in the order of the blocks.
  static I blocks_in_order(I sums) {
    const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, sums);
  }
  // Likewise of the sums of halves of blocks.
  static I halves_in_order(I first, I last) {
    const I order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    return _mm512_permutexvar_epi32(order, add(_mm512_shuffle_i32x4(first, last, 0x88),
                                               _mm512_shuffle_i32x4(first, last, 0xDD)));
  }
  // Lane v of each 16 bytes: the sum of those of vector v of four.
  static I sums_in_quarters(const I* four) {
    const I first = add(_mm512_unpacklo_epi32(four[0], four[1]),
                        _mm512_unpackhi_epi32(four[0], four[1]));
    const I last = add(_mm512_unpacklo_epi32(four[2], four[3]),
                       _mm512_unpackhi_epi32(four[2], four[3]));
    return add(_mm512_unpacklo_epi64(first, last), _mm512_unpackhi_epi64(first, last));
  }
  // Dword j of vector i becomes dword i of vector j.
  static void transpose(I* rows) {
    I pairs[16];
    for (int i = 0; i < 8; ++i) {
      pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
      pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    I fours[16];
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 2; ++j) {
        fours[4 * i + 2 * j] = _mm512_unpacklo_epi64(pairs[4 * i + j], pairs[4 * i + 2 + j]);
        fours[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[4 * i + j], pairs[4 * i + 2 + j]);
      }
    }
    // Quarter k of fours[4 i + c] now holds rows 4 i to 4 i + 3 at column 4 k + c.
    for (int c = 0; c < 4; ++c) {
      const I low_left = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0x44);
      const I high_left = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0xEE);
      const I low_right = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0x44);
      const I high_right = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0xEE);
      rows[c] = _mm512_shuffle_i32x4(low_left, low_right, 0x88);
      rows[4 + c] = _mm512_shuffle_i32x4(low_left, low_right, 0xDD);
      rows[8 + c] = _mm512_shuffle_i32x4(high_left, high_right, 0x88);
      rows[12 + c] = _mm512_shuffle_i32x4(high_left, high_right, 0xDD);
    }
  }
};
