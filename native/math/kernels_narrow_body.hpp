// Dot products of int8 and int4 rows in integers, four blocks at a time, over structs of two kinds of
// dot. For few tokens the four lanes run along a row, for more they run across four rows.

constexpr std::int64_t kFour = kN;  // blocks that are summed up together

// x: kXBytes for each block as the dot wants them, then the scales as float, zeros behind, and for int4
// rows likewise the sums of the blocks and -8 times their sums of steps.
template <typename Dot>
struct PreparedX {
  std::int64_t blocks;
  std::int64_t padded;

  explicit PreparedX(const RowFormat& format)
      : blocks(format.blocks()), padded((blocks + kSumLanes - 1) / kSumLanes * kSumLanes) {}
  float* scales(std::uint8_t* prepared) const {
    return reinterpret_cast<float*>(prepared + blocks * Dot::kXBytes);
  }
  const float* scales(const std::uint8_t* prepared) const {
    return reinterpret_cast<const float*>(prepared + blocks * Dot::kXBytes);
  }
  std::size_t bytes() const {
    const std::int64_t floats = (Dot::Row::kOffsets ? 3 : 1) * padded;
    return (static_cast<std::size_t>(blocks * Dot::kXBytes) +
            static_cast<std::size_t>(floats) * sizeof(float) + 63) / 64 * 64;
  }
};

template <typename Dot>
inline std::size_t prepared_ints_bytes(const RowFormat& format) {
  return PreparedX<Dot>(format).bytes();
}

template <typename Dot>
inline void prepare_ints(const RowFormat& format, const float* x, std::uint8_t* prepared) {
  const PreparedX<Dot> layout(format);
  __builtin_memset(prepared, 0, layout.bytes());
  float* const scales = layout.scales(prepared);
  for (std::int64_t block = 0; block < layout.blocks; ++block) {
    std::int32_t steps[kBlock];
    const std::int64_t first = block * kBlock;
    scales[block] =
        round_block(x + first, least(kBlock, format.dim - first), Dot::kLevels, steps);
    if constexpr (Dot::Row::kOffsets) {
      const float sum = static_cast<float>(sum_of_steps(steps));
      scales[layout.padded + block] = scales[block] * sum;
      scales[2 * layout.padded + block] = -8 * sum;
    }
    Dot::put_x(steps, prepared + block * Dot::kXBytes);
  }
}

// dots [kTokens]: the sums of up to four blocks, unpacked once for all tokens.
template <typename Dot, int kTokens>
inline void block_sums(const std::uint8_t* weights, const std::uint8_t* x, std::size_t x_stride,
                       std::int64_t held, F* dots) {
  typename Dot::Partial parts[kTokens][kFour];
  for (std::int64_t i = 0; i < kFour; ++i) {
    if (i >= held) {
      for (int t = 0; t < kTokens; ++t) {
        parts[t][i] = Dot::zero();
      }
      continue;
    }
    const typename Dot::Weights block = Dot::unpack(weights + i * Dot::kBlockBytes);
    for (int t = 0; t < kTokens; ++t) {
      parts[t][i] =
          Dot::dot(block, x + static_cast<std::size_t>(t) * x_stride + i * Dot::kXBytes);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    dots[t] = Dot::sums(parts[t]);
  }
}

// The sums of a row's blocks; those of offsets apart.
struct RowSums {
  static constexpr std::int64_t kParts = kSumLanes / kFour;
  F sums[kParts];
  F offsets[kParts];

  RowSums() {
    for (int p = 0; p < kParts; ++p) {
      sums[p] = offsets[p] = Vec::zero();
    }
  }
  float total(bool with_offsets) {
    for (int p = 0; with_offsets && p < kParts; ++p) {
      sums[p] = Vec::add(sums[p], offsets[p]);
    }
    return Vec::sum(Vec::add(Vec::add(sums[0], sums[2]), Vec::add(sums[1], sums[3])));
  }
};

template <typename Dot, int kTokens>
inline void dot_int_row(const typename Dot::Row& row, const PreparedX<Dot>& layout,
                        const std::uint8_t* prepared, RowSums* to) {
  for (std::int64_t first = 0; first < layout.blocks; first += kFour) {
    const std::int64_t held = least(kFour, layout.blocks - first);
    const std::int64_t p = first / kFour % RowSums::kParts;
    F dots[kTokens];
    block_sums<Dot, kTokens>(row.quants + first * Dot::kBlockBytes,
                             prepared + first * Dot::kXBytes, layout.bytes(), held, dots);
    const F scales = row.some_scales(first, held);
    F offsets = Vec::zero();
    if constexpr (Dot::Row::kOffsets) {
      offsets = row.some_offsets(first, held);
    }
    for (int t = 0; t < kTokens; ++t) {
      const float* const x_scales =
          layout.scales(prepared + static_cast<std::size_t>(t) * layout.bytes()) + first;
      if constexpr (Dot::Row::kOffsets) {
        const float* const x_sums = x_scales + layout.padded;
        dots[t] = Vec::add(dots[t], Vec::load(x_sums + layout.padded));
        to[t].offsets[p] = Vec::add(to[t].offsets[p], Vec::mul(offsets, Vec::load(x_sums)));
      }
      to[t].sums[p] =
          Vec::add(to[t].sums[p], Vec::mul(dots[t], Vec::mul(scales, Vec::load(x_scales))));
    }
  }
}

template <typename Dot, int kTokens>
inline void dot_tokens(const RowFormat& format, const std::uint8_t* const* rows,
                       std::int64_t count, const std::uint8_t* prepared, float* out) {
  const PreparedX<Dot> layout(format);
  for (std::int64_t i = 0; i < count; ++i) {
    RowSums sums[kTokens];
    dot_int_row<Dot, kTokens>(typename Dot::Row(rows[i], format), layout, prepared, sums);
    for (int t = 0; t < kTokens; ++t) {
      out[t * count + i] = sums[t].total(Dot::Row::kOffsets);
    }
  }
}

// Packed: four rows after four rows, zeros in the place of missing ones; of each such strip, block
// after block, the rows' quants, then their scales and for int4 their least values as float.
template <typename Dot>
constexpr std::int64_t packed_block_bytes() {
  return kFour * (Dot::kBlockBytes + (Dot::Row::kOffsets ? 8 : 4));
}

template <typename Dot>
inline std::size_t packed_ints_bytes(const RowFormat& format, std::int64_t count) {
  const std::int64_t strips = (count + kFour - 1) / kFour;
  return (static_cast<std::size_t>(strips * format.blocks() * packed_block_bytes<Dot>()) + 63) / 64 *
         64;
}

template <typename Dot>
inline void pack_int_row(const typename Dot::Row& row, std::int64_t blocks, std::int64_t place,
                         std::uint8_t* packed) {
  for (std::int64_t block = 0; block < blocks; ++block, packed += packed_block_bytes<Dot>()) {
    __builtin_memcpy(packed + place * Dot::kBlockBytes, row.block(block), Dot::kBlockBytes);
    if (block % kFour != 0) {
      continue;
    }
    const std::int64_t held = least(kFour, blocks - block);
    float scales[kFour];
    float least_values[kFour];
    const F some_scales = row.some_scales(block, held);
    Vec::store(scales, some_scales);
    if constexpr (Dot::Row::kOffsets) {
      Vec::store(least_values, least_of(some_scales, row.some_offsets(block, held)));
    }
    for (std::int64_t i = 0; i < held; ++i) {
      float* const to = reinterpret_cast<float*>(packed + i * packed_block_bytes<Dot>() +
                                                 kFour * Dot::kBlockBytes);
      to[place] = scales[i];
      if constexpr (Dot::Row::kOffsets) {
        to[kFour + place] = least_values[i];
      }
    }
  }
}

template <typename Dot>
inline void pack_int_rows(const RowFormat& format, const std::uint8_t* const* rows,
                          std::int64_t count, std::uint8_t* packed) {
  __builtin_memset(packed, 0, packed_ints_bytes<Dot>(format, count));
  for (std::int64_t i = 0; i < count; ++i) {
    pack_int_row<Dot>(typename Dot::Row(rows[i], format), format.blocks(), i % kFour,
                      packed + i / kFour * format.blocks() * packed_block_bytes<Dot>());
  }
}

// A tile: the tokens' x as for one token, one after the other.
template <typename Dot>
inline std::size_t tile_ints_bytes(const RowFormat& format) {
  return kDotTokens * PreparedX<Dot>(format).bytes();
}

template <typename Dot>
inline void prepare_ints_tile(const RowFormat& format, const float* x, std::int64_t x_stride,
                              std::int64_t tokens, std::uint8_t* tile) {
  for (std::int64_t t = 0; t < tokens; ++t, tile += PreparedX<Dot>(format).bytes()) {
    prepare_ints<Dot>(format, x + t * x_stride, tile);
  }
}

// Dots of a strip's rows with kTokens tokens: weights are unpacked once for all of them.
template <typename Dot, int kTokens>
inline void packed_dot_strip(const PreparedX<Dot>& layout, const std::uint8_t* packed,
                             const std::uint8_t* tile, float (*out)[kFour]) {
  const std::size_t x_stride = layout.bytes();
  F sums[kTokens];
  for (int t = 0; t < kTokens; ++t) {
    sums[t] = Vec::zero();
  }
  for (std::int64_t block = 0; block < layout.blocks; ++block, packed += packed_block_bytes<Dot>()) {
    typename Dot::Weights weights[kFour];
    for (int r = 0; r < kFour; ++r) {
      weights[r] = Dot::unpack(packed + r * Dot::kBlockBytes);
    }
    const float* const lines = reinterpret_cast<const float*>(packed + kFour * Dot::kBlockBytes);
    for (int t = 0; t < kTokens; ++t) {
      const std::uint8_t* const token = tile + static_cast<std::size_t>(t) * x_stride;
      typename Dot::Partial parts[kFour];
      for (int r = 0; r < kFour; ++r) {
        parts[r] = Dot::dot(weights[r], token + block * Dot::kXBytes);
      }
      const float* const x_scales = layout.scales(token);
      sums[t] = Vec::add(sums[t], Vec::mul(Dot::sums(parts), Vec::mul(Vec::load(lines),
                                                                      Vec::all(x_scales[block]))));
      if constexpr (Dot::Row::kOffsets) {
        const F x_sum = Vec::all(x_scales[layout.padded + block]);
        sums[t] = Vec::add(sums[t], Vec::mul(Vec::load(lines + kFour), x_sum));
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    Vec::store(out[t], sums[t]);
  }
}

template <typename Dot>
inline void packed_dot_ints(const RowFormat& format, const std::uint8_t* packed,
                            std::int64_t count, const std::uint8_t* tile, std::int64_t tokens,
                            float* out, std::int64_t out_stride) {
  const PreparedX<Dot> layout(format);
  for (std::int64_t i = 0; i < count; i += kFour) {
    float dots[kDotTokens][kFour];
    if (tokens == kDotTokens) {
      packed_dot_strip<Dot, kDotTokens>(layout, packed, tile, dots);
    }
    for (std::int64_t t = 0; t < tokens; ++t) {
      if (tokens < kDotTokens) {
        packed_dot_strip<Dot, 1>(layout, packed, tile + static_cast<std::size_t>(t) * layout.bytes(),
                                 dots + t);
      }
      copy_floats(out + t * out_stride + i, dots[t], least(kFour, count - i));
    }
    packed += layout.blocks * packed_block_bytes<Dot>();
  }
}
