// Dot products of int8 and int4 rows in integers, over a struct Ints of wide vectors. For few tokens
// the lanes run along a row, for more they run across rows (kernels_wide_packed_body.hpp). Few
// tokens' rows are walked one after the other in the order of their addresses, which processors
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
  // The weights that meet the first and the second vector of a step's x.
  static I first(I weights) { return Ints::low_nibbles(weights); }
  static I second(I weights) { return Ints::high_nibbles(weights); }
  static I dot(I first, I second, const std::uint8_t* x) {
    return Ints::dot_nibbles(first, Ints::load(x), second, Ints::load(x + kBytes));
  }
  // The sums of kN blocks, in order, from those in parts of vectors.
  static I in_order(const I* parts) { return Ints::blocks_in_order(parts[0]); }
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

  static I first(I weights) { return Ints::mxfp4_quants(Ints::low_nibbles(weights)); }
  static I second(I weights) { return Ints::mxfp4_quants(Ints::high_nibbles(weights)); }
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
  static I first(I weights) { return Ints::even_int8(weights); }
  static I second(I weights) { return Ints::odd_int8(weights); }
  static I dot(I first, I second, const std::uint8_t* x) {
    const I even = Ints::add_pairs_dot(Ints::zero(), first, Ints::load(x));
    return Ints::add_pairs_dot(even, second, Ints::load(x + kBytes));
  }
  static I in_order(const I* parts) { return Ints::halves_in_order(parts[0], parts[1]); }
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

// The dots of kN blocks of a row from `first` on, of which `held` are there, with each token's x;
// kWhole: all of them. Four vectors of weights are unpacked at a time, once for all tokens.
template <typename Dot, int kTokens, bool kWhole>
inline void dot_blocks(const typename Dot::Row& row, const PreparedX<Dot>& layout,
                       const std::uint8_t* prepared, std::int64_t first, std::int64_t held,
                       std::int64_t ahead, I* dots) {
  constexpr int kFours = kN / Dot::kStep / 4;
  const std::uint8_t* const weights = row.quants + first * Dot::kBlockBytes;
  const std::uint8_t* const x = prepared + first / Dot::kStep * Dot::kXBytes;
  I parts[kTokens][kFours];
#pragma GCC unroll 2
  for (int four = 0; four < kFours; ++four) {
    I sums[kTokens][4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int v = 4 * four + i;
      const std::uint8_t* const from = weights + v * kBytes;
      const std::int64_t left = kWhole ? kBytes : (held - v * Dot::kStep) * Dot::kBlockBytes;
      __builtin_prefetch(from + ahead);
      if (left <= 0) {
        for (int t = 0; t < kTokens; ++t) {
          sums[t][i] = Ints::zero();
        }
        continue;
      }
      const I both = left >= kBytes ? Ints::load(from) : Ints::load_some(from, left);
      const I one = Dot::first(both);
      const I other = Dot::second(both);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        sums[t][i] = Dot::dot(one, other, x + v * Dot::kXBytes + t * layout.bytes());
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      parts[t][four] = Ints::sums_in_quarters(sums[t]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    dots[t] = Dot::in_order(parts[t]);
  }
}

// The part of those blocks in each token's sums.
template <typename Dot, int kTokens, bool kWhole>
inline void add_blocks(const typename Dot::Row& row, const PreparedX<Dot>& layout,
                       const std::uint8_t* prepared, std::int64_t first, std::int64_t held,
                       std::int64_t ahead, int part, RowSums<Dot>* to) {
  I dots[kTokens];
  dot_blocks<Dot, kTokens, kWhole>(row, layout, prepared, first, held, ahead, dots);
  __builtin_prefetch(row.scale_at(first) + ahead);
  const F scales = row.some_scales(first, held);
  F offsets = Vec::zero();
  if constexpr (Dot::Row::kOffsets) {
    __builtin_prefetch(row.offsets + first + ahead);
    offsets = row.some_offsets(first, held);
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    const auto x_at = [&](std::size_t at) {
      return Vec::load(reinterpret_cast<const float*>(prepared + t * layout.bytes() + at) + first);
    };
    if constexpr (Dot::Row::kOffsets) {
      dots[t] = Ints::add(dots[t], Ints::as_ints(x_at(layout.eights_at())));
      to[t].offsets[part] = Vec::add(to[t].offsets[part],
                                     Vec::mul(offsets, x_at(layout.sums_at())));
    }
    to[t].sums[part] = Vec::add(to[t].sums[part],
                                Vec::mul(Ints::to_float(dots[t]),
                                         Vec::mul(scales, x_at(layout.scales_at()))));
  }
}

// Several tokens' x of long rows does not fit in a processor's first cache: so many blocks of it do,
// which kSharingRows rows meet one after the other.
template <int kTokens>
constexpr std::int64_t kSharedBlocks = 384 / kTokens / kSumLanes * kSumLanes;
constexpr std::int64_t kSharingRows = 8;

// The part of the blocks from `first` to before `end` in each token's sums.
template <typename Dot, int kTokens>
inline void add_row(const typename Dot::Row& row, const PreparedX<Dot>& layout,
                    const std::uint8_t* prepared, std::int64_t first, std::int64_t end,
                    std::int64_t ahead, RowSums<Dot>* to) {
  const std::int64_t whole = first + (end - first) / kSumLanes * kSumLanes;
  for (; first < whole; first += kSumLanes) {
#pragma GCC unroll 2
    for (int p = 0; p < kParts; ++p) {
      add_blocks<Dot, kTokens, true>(row, layout, prepared, first + p * kN, kN, ahead, p, to);
    }
  }
  asm("" : "+r"(first));  // or compilers keep dozens of addresses of last blocks in all registers
#pragma GCC unroll 2
  for (int p = 0; p < kParts && first < end; ++p, first += kN) {
    add_blocks<Dot, kTokens, false>(row, layout, prepared, first, least(kN, end - first), ahead, p,
                                    to);
  }
}

template <typename Dot, int kTokens>
inline void dot_tokens(const RowFormat& format, const std::uint8_t* const* rows,
                       std::int64_t count, const std::uint8_t* prepared, float* out) {
  const PreparedX<Dot> layout(format);
  const std::int64_t blocks = format.blocks();
  if (kTokens == 1 || blocks <= kSharedBlocks<kTokens>) {
    for (std::int64_t i = 0; i < count; ++i) {
      RowSums<Dot> sums[kTokens];
      add_row<Dot, kTokens>(typename Dot::Row(rows[i], format), layout, prepared, 0, blocks,
                            kBytesAhead, sums);
      for (int t = 0; t < kTokens; ++t) {
        out[t * count + i] = sums[t].total();
      }
    }
    return;
  }
  const std::int64_t ahead = kSharingRows * static_cast<std::int64_t>(format.row_bytes());
  for (std::int64_t i = 0; i < count; i += kSharingRows) {
    const std::int64_t sharing = least(kSharingRows, count - i);
    RowSums<Dot> sums[kSharingRows][kTokens];
    for (std::int64_t first = 0; first < blocks; first += kSharedBlocks<kTokens>) {
      for (std::int64_t r = 0; r < sharing; ++r) {
        add_row<Dot, kTokens>(typename Dot::Row(rows[i + r], format), layout, prepared, first,
                              least(first + kSharedBlocks<kTokens>, blocks), ahead, sums[r]);
      }
    }
    for (std::int64_t r = 0; r < sharing; ++r) {
      for (int t = 0; t < kTokens; ++t) {
        out[t * count + i + r] = sums[r][t].total();
      }
    }
  }
}

template <typename Dot>
inline std::size_t prepared_ints_bytes(const RowFormat& format) {
  return PreparedX<Dot>(format).bytes();
}
