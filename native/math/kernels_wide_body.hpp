// Dot products of int8 and int4 rows in integers, over a struct Ints of wide vectors. For one token
// the lanes run along a row, for several they run across rows (kernels_wide_packed_body.hpp). One
// token's rows are walked one after the other in the order of their addresses, which processors
// foresee; what lies kBytesAhead is fetched meanwhile.

using I = Ints::I;
constexpr std::int64_t kBytes = Ints::kBytes;

// x as it meets int4 rows, by steps of kStep blocks: the first halves of the blocks as int8, then the
// last halves; after all steps the scales as float, zeros behind, and likewise the sums of the blocks
// and -8 times their sums of steps as int32.
struct Int4Dot {
  using Row = Int4Row;
  using Step = std::int8_t;  // a rounded value of x
  static constexpr std::int64_t kStep = kBytes / 16;  // blocks of a vector of weights
  static constexpr std::int64_t kBlockBytes = 16;     // of weights
  static constexpr std::int64_t kXBytes = 2 * kBytes;
  static constexpr std::int64_t kVectors = 8;  // of a packed block's quants
  static constexpr float kLevels = kInt4Levels;

  static void put_x(const std::int32_t* steps, std::int64_t block, std::uint8_t* step_x) {
    std::int8_t* const first = reinterpret_cast<std::int8_t*>(step_x) + 16 * block;
    for (int i = 0; i < 16; ++i) {
      first[i] = static_cast<std::int8_t>(steps[i]);
      first[kBytes + i] = static_cast<std::int8_t>(steps[16 + i]);
    }
  }
  static I dot(I weights, const std::uint8_t* x) {
    return Ints::dot_nibbles(Ints::low_nibbles(weights), Ints::load(x),
                             Ints::high_nibbles(weights), Ints::load(x + kBytes));
  }
  static void sum_blocks(const I* dots, I* sums) { Ints::sum_four_lanes(dots, sums); }
  // The four columns `i` of a step, of all rows, into the vectors of their packed block.
  static void put_columns(I columns, std::int64_t i, std::uint8_t* block) {
    Ints::store(block + i * kBytes, Ints::low_nibbles(columns));
    Ints::store(block + (4 + i) * kBytes, Ints::high_nibbles(columns));
  }
  // The bytes of x that meet packed vectors, four for each.
  static void put_columns_x(const std::int32_t* steps, std::int8_t* x) {
    for (int i = 0; i < kBlock; ++i) {
      x[i] = static_cast<std::int8_t>(steps[i]);
    }
  }
  static I begin() { return Ints::zero(); }
  static I add_dot(I sum, I weights, I x) { return Ints::add_nibbles_dot(sum, weights, x); }
  static I end(I sum) { return Ints::end_nibbles_dot(sum); }
};

// The same of quants up to 24: sixteen products do not fit in 16 bits.
struct Mxfp4Dot : Int4Dot {
  using Row = Mxfp4Row;

  static I dot(I weights, const std::uint8_t* x) {
    return Ints::dot_nibbles(Ints::mxfp4_quants(Ints::low_nibbles(weights)), Ints::load(x),
                             Ints::mxfp4_quants(Ints::high_nibbles(weights)),
                             Ints::load(x + kBytes));
  }
  static void put_columns(I columns, std::int64_t i, std::uint8_t* block) {
    Ints::store(block + i * kBytes, Ints::mxfp4_quants(Ints::low_nibbles(columns)));
    Ints::store(block + (4 + i) * kBytes, Ints::mxfp4_quants(Ints::high_nibbles(columns)));
  }
  static I add_dot(I sum, I weights, I x) {
    return Ints::add(sum, Ints::end_nibbles_dot(Ints::add_nibbles_dot(Ints::zero(), weights, x)));
  }
  static I end(I sum) { return sum; }
};

// x as it meets int8 rows, by steps of kStep blocks: the values of even columns as int16, then those
// of odd ones; after all steps the scales.
struct Int8Dot {
  using Row = Int8Row;
  using Step = std::int16_t;
  static constexpr std::int64_t kStep = kBytes / 32;
  static constexpr std::int64_t kBlockBytes = 32;
  static constexpr std::int64_t kXBytes = 2 * kBytes;
  static constexpr std::int64_t kVectors = 16;
  static constexpr float kLevels = kInt8Levels;

  static void put_x(const std::int32_t* steps, std::int64_t block, std::uint8_t* step_x) {
    std::int16_t* const even = reinterpret_cast<std::int16_t*>(step_x) + 16 * block;
    for (int i = 0; i < 16; ++i) {
      even[i] = static_cast<std::int16_t>(steps[2 * i]);
      even[kBytes / 2 + i] = static_cast<std::int16_t>(steps[2 * i + 1]);
    }
  }
  static I dot(I weights, const std::uint8_t* x) {
    const I even = Ints::add_pairs_dot(Ints::zero(), Ints::even_int8(weights), Ints::load(x));
    return Ints::add_pairs_dot(even, Ints::odd_int8(weights), Ints::load(x + kBytes));
  }
  static void sum_blocks(const I* dots, I* sums) { Ints::sum_eight_lanes(dots, sums); }
  static void put_columns(I columns, std::int64_t i, std::uint8_t* block) {
    Ints::store(block + i * kBytes, Ints::even_int8(columns));
    Ints::store(block + (8 + i) * kBytes, Ints::odd_int8(columns));
  }
  static void put_columns_x(const std::int32_t* steps, std::int16_t* x) {
    for (int i = 0; i < kBlock / 2; ++i) {
      x[i] = static_cast<std::int16_t>(steps[2 * i]);
      x[kBlock / 2 + i] = static_cast<std::int16_t>(steps[2 * i + 1]);
    }
  }
  static I begin() { return Ints::zero(); }
  static I add_dot(I sum, I weights, I x) { return Ints::add_pairs_dot(sum, weights, x); }
  static I end(I sum) { return sum; }
};

template <typename Dot>
struct PreparedX {
  std::int64_t steps;
  std::int64_t padded_blocks;

  explicit PreparedX(const RowFormat& format)
      : steps((format.blocks() + Dot::kStep - 1) / Dot::kStep),
        padded_blocks((format.blocks() + kSumLanes - 1) / kSumLanes * kSumLanes) {}
  std::size_t scales_at() const { return static_cast<std::size_t>(steps * Dot::kXBytes); }
  std::size_t scales_bytes() const {
    return static_cast<std::size_t>(padded_blocks) * sizeof(float);
  }
  std::size_t sums_at() const { return scales_at() + scales_bytes(); }
  std::size_t eights_at() const { return sums_at() + scales_bytes(); }
  std::size_t bytes() const {
    return scales_at() + (Dot::Row::kOffsets ? 3 : 1) * scales_bytes();
  }
};

template <typename Dot>
inline void prepare_ints(const RowFormat& format, const float* x, std::uint8_t* prepared) {
  const PreparedX<Dot> layout(format);
  __builtin_memset(prepared, 0, layout.bytes());
  float* const scales = reinterpret_cast<float*>(prepared + layout.scales_at());
  float* const sums = reinterpret_cast<float*>(prepared + layout.sums_at());
  std::int32_t* const eights = reinterpret_cast<std::int32_t*>(prepared + layout.eights_at());
  for (std::int64_t block = 0; block < format.blocks(); ++block) {
    std::int32_t steps[kBlock];
    const std::int64_t first = block * kBlock;
    scales[block] =
        round_block(x + first, least(kBlock, format.dim - first), Dot::kLevels, steps);
    Dot::put_x(steps, block % Dot::kStep, prepared + block / Dot::kStep * Dot::kXBytes);
    if constexpr (Dot::Row::kOffsets) {
      const std::int32_t sum = sum_of_steps(steps);
      sums[block] = scales[block] * static_cast<float>(sum);
      eights[block] = -8 * sum;
    }
  }
}

constexpr int kParts = kSumLanes / kN;  // vectors of sums

// The sums of a row's blocks, so far; those of offsets apart.
template <typename Dot>
struct RowSums {
  F sums[kParts];
  F offsets[kParts];

  RowSums() {
    for (int p = 0; p < kParts; ++p) {
      sums[p] = offsets[p] = Vec::zero();
    }
  }
  float total() {
    for (int p = 0; Dot::Row::kOffsets && p < kParts; ++p) {
      sums[p] = Vec::add(sums[p], offsets[p]);
    }
    if constexpr (kParts == 2) {
      sums[0] = Vec::add(sums[0], sums[1]);
    }
    return Vec::sum(sums[0]);
  }
};

// The blocks of a row from `first` on, as many as there are lanes; kWhole: `held` is that number.
template <typename Dot, bool kWhole>
inline void add_blocks(const typename Dot::Row& row, const PreparedX<Dot>& layout,
                       const std::uint8_t* prepared, std::int64_t first, std::int64_t held,
                       RowSums<Dot>& to) {
  constexpr int kDots = kSumLanes / Dot::kStep;
  const std::uint8_t* const weights = row.quants + first * Dot::kBlockBytes;
  const std::uint8_t* const x = prepared + first / Dot::kStep * Dot::kXBytes;
  I dots[kDots];
#pragma GCC unroll 16
  for (int v = 0; v < kDots; ++v) {
    const std::int64_t left = kWhole ? kBytes : (held - v * Dot::kStep) * Dot::kBlockBytes;
    const std::uint8_t* const from = weights + v * kBytes;
    __builtin_prefetch(from + kBytesAhead);
    dots[v] = left >= kBytes ? Dot::dot(Ints::load(from), x + v * Dot::kXBytes)
              : left > 0     ? Dot::dot(Ints::load_some(from, left), x + v * Dot::kXBytes)
                             : Ints::zero();
  }
  I sums[kParts];
  Dot::sum_blocks(dots, sums);
  __builtin_prefetch(row.scale_at(first) + kBytesAhead);
  if constexpr (Dot::Row::kOffsets) {
    __builtin_prefetch(row.offsets + first + kBytesAhead);
  }
  const auto floats_at = [&](std::size_t part, std::int64_t block) {
    return Vec::load(reinterpret_cast<const float*>(prepared + part) + block);
  };
#pragma GCC unroll 2
  for (int p = 0; p < kParts; ++p) {
    const std::int64_t block = first + p * kN;
    const std::int64_t some = kWhole ? kN : least(kN, held - p * kN);
    if (some <= 0) {
      break;
    }
    if constexpr (Dot::Row::kOffsets) {
      sums[p] = Ints::add(sums[p], Ints::as_ints(floats_at(layout.eights_at(), block)));
      to.offsets[p] = Vec::add(to.offsets[p], Vec::mul(row.some_offsets(block, some),
                                                       floats_at(layout.sums_at(), block)));
    }
    const F scales = Vec::mul(row.some_scales(block, some), floats_at(layout.scales_at(), block));
    to.sums[p] = Vec::add(to.sums[p], Vec::mul(Ints::to_float(sums[p]), scales));
  }
}

template <typename Dot>
inline void dot_int_rows(const RowFormat& format, const std::uint8_t* const* rows,
                         std::int64_t count, const std::uint8_t* prepared, float* out) {
  const PreparedX<Dot> layout(format);
  const std::int64_t blocks = format.blocks();
  const std::int64_t whole = blocks / kSumLanes * kSumLanes;
  for (std::int64_t i = 0; i < count; ++i) {
    const typename Dot::Row row(rows[i], format);
    RowSums<Dot> sums;
    for (std::int64_t first = 0; first < whole; first += kSumLanes) {
      add_blocks<Dot, true>(row, layout, prepared, first, kSumLanes, sums);
    }
    if (whole < blocks) {
      add_blocks<Dot, false>(row, layout, prepared, whole, blocks - whole, sums);
    }
    out[i] = sums.total();
  }
}

template <typename Dot>
inline std::size_t prepared_ints_bytes(const RowFormat& format) {
  return PreparedX<Dot>(format).bytes();
}
