// Vectors of 256 bits for the kernels' bodies; no include guard, for the reason told there.

struct Vec {
  using F = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kDotRows = 2;
  static constexpr int kAddTokens = 4;
  static constexpr int kAddRows = 4;

  static F zero() { return _mm256_setzero_ps(); }
  static F all(float value) { return _mm256_set1_ps(value); }
  static F load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, F value) { _mm256_storeu_ps(to, value); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum(F value) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static F from_int8(const std::uint8_t* from) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }
  static F from_low_int4(const std::uint8_t* from) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    const __m256i values = _mm256_and_si256(_mm256_cvtepu8_epi32(bytes), _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(values, _mm256_set1_epi32(8)));
  }
  static F from_high_int4(const std::uint8_t* from) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    const __m256i values = _mm256_srli_epi32(_mm256_cvtepu8_epi32(bytes), 4);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(values, _mm256_set1_epi32(8)));
  }
  static F from_low_mxfp4(const std::uint8_t* from) { return mxfp4(eight_bytes(from)); }
  static F from_high_mxfp4(const std::uint8_t* from) {
    return mxfp4(_mm_srli_epi16(eight_bytes(from), 4));
  }
  static __m128i eight_bytes(const std::uint8_t* from) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  }
  static F mxfp4(__m128i bytes) {
    const __m128i quants = _mm_shuffle_epi8(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(kMxfp4Quants)),
        _mm_and_si128(bytes, _mm_set1_epi8(15)));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_cvtepu8_epi32(quants), _mm256_set1_epi32(8)));
  }
  static F from_half(const std::uint8_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static F all_half(const std::uint8_t* from) {
    short bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    return _mm256_cvtph_ps(_mm_set1_epi16(bits));
  }
  // The first `count` of them, zeros behind. Of fewer than a vector's, those that end there are read
  // and shifted: a row's quants lie before them.
  static F from_some_halves(const std::uint8_t* from, std::int64_t count) {
    if (count >= kLanes) {
      return from_half(from);
    }
    unsigned __int128 halves = 0;
    if (count > 0) {
      const std::int64_t missing = 2 * (kLanes - count);
      __builtin_memcpy(&halves, from - missing, sizeof halves);
      halves >>= 8 * missing;
    }
    return _mm256_cvtph_ps(_mm_set_epi64x(static_cast<std::int64_t>(halves >> 64),
                                          static_cast<std::int64_t>(halves)));
  }
  static F from_some_uint8(const std::uint8_t* from, std::int64_t count) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(some_bytes(from, count)));
  }
  static F from_some_int8(const std::uint8_t* from, std::int64_t count) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(some_bytes(from, count)));
  }
  static F from_some_exponents(const std::uint8_t* from, std::int64_t count) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(some_bytes(from, count)), 23));
  }
  static __m128i some_bytes(const std::uint8_t* from, std::int64_t count) {
    if (count >= kLanes) {
      return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    }
    std::uint64_t bytes = 0;
    if (count > 0) {
      __builtin_memcpy(&bytes, from - (kLanes - count), sizeof bytes);
      bytes >>= 8 * (kLanes - count);
    }
    return _mm_cvtsi64_si128(static_cast<std::int64_t>(bytes));
  }
};

struct Vec256Ints {
  using I = __m256i;
  static constexpr int kBytes = 32;
  static constexpr int kStrips = 1;

  static I zero() { return _mm256_setzero_si256(); }
  static I load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  // Half as many bytes as int16.
  static I widened(const void* from) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  }
  // The first 16 bytes, zeros behind: no other part of a vector is ever asked for.
  static I load_some(const std::uint8_t* from, std::int64_t) {
    return _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static void store(void* to, I value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }
  static I all_four_bytes(const std::uint8_t* from) {
    std::int32_t bytes;
    __builtin_memcpy(&bytes, from, sizeof bytes);
    return _mm256_set1_epi32(bytes);
  }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  static I low_nibbles(I bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
  static I high_nibbles(I bytes) { return low_nibbles(_mm256_srli_epi16(bytes, 4)); }
  static I mxfp4_quants(I nibbles) {
    const __m128i quants = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kMxfp4Quants));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(quants), nibbles);
  }
  static I even_int8(I bytes) { return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8); }
  static I odd_int8(I bytes) { return _mm256_srai_epi16(bytes, 8); }
  static Vec::F to_float(I value) { return _mm256_cvtepi32_ps(value); }
  static Vec::F as_float(I value) { return _mm256_castsi256_ps(value); }
  static I as_ints(Vec::F value) { return _mm256_castps_si256(value); }
  // The sums of blocks in halves of vectors -> in the order of the blocks.
  static I blocks_in_order(I sums) {
    return _mm256_permutevar8x32_epi32(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  // Likewise of the sums of halves of blocks.
  static I halves_in_order(I first, I last) {
    return add(_mm256_permute2x128_si256(first, last, 0x20),
               _mm256_permute2x128_si256(first, last, 0x31));
  }
  // Lane v of each 16 bytes: the sum of those of vector v of four.
  static I sums_in_quarters(const I* four) {
    const I first = add(_mm256_unpacklo_epi32(four[0], four[1]),
                        _mm256_unpackhi_epi32(four[0], four[1]));
    const I last = add(_mm256_unpacklo_epi32(four[2], four[3]),
                       _mm256_unpackhi_epi32(four[2], four[3]));
    return add(_mm256_unpacklo_epi64(first, last), _mm256_unpackhi_epi64(first, last));
  }
  // Dword j of vector i becomes dword i of vector j.
  static void transpose(I* rows) {
    I pairs[8];
    for (int i = 0; i < 4; ++i) {
      pairs[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
      pairs[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    I fours[8];
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        fours[4 * i + 2 * j] = _mm256_unpacklo_epi64(pairs[4 * i + j], pairs[4 * i + 2 + j]);
        fours[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(pairs[4 * i + j], pairs[4 * i + 2 + j]);
      }
    }
    for (int i = 0; i < 4; ++i) {
      rows[i] = _mm256_permute2x128_si256(fours[i], fours[4 + i], 0x20);
      rows[4 + i] = _mm256_permute2x128_si256(fours[i], fours[4 + i], 0x31);
    }
  }
};
