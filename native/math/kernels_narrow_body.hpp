// Dot products of int8 and int4 rows in integers, a block at a time, over a struct Ints that holds
// two kinds of dot; several tokens take the encoded rows, too.

// x: kXBytes for each block as the dot wants them, then the scales as float, for int4 rows the sums of
// the blocks, too. Lanes run along kN blocks.
template <typename Dot>
inline std::size_t prepared_ints_bytes(const RowFormat& format) {
  const std::size_t each = Dot::kXBytes + (Dot::Row::kOffsets ? 2 : 1) * sizeof(float);
  return (static_cast<std::size_t>(format.blocks()) * each + 63) / 64 * 64;
}

template <typename Dot>
inline void prepare_ints(const RowFormat& format, const float* x, std::uint8_t* prepared) {
  const std::int64_t blocks = format.blocks();
  float* const scales = reinterpret_cast<float*>(prepared + blocks * Dot::kXBytes);
  for (std::int64_t block = 0; block < blocks; ++block) {
    std::int32_t steps[kBlock];
    const std::int64_t first = block * kBlock;
    scales[block] =
        round_block(x + first, least(kBlock, format.dim - first), Dot::kLevels, steps);
    if constexpr (Dot::Row::kOffsets) {
      scales[blocks + block] = scales[block] * sum_of_steps(steps);
    }
    Dot::put_x(steps, prepared + block * Dot::kXBytes);
  }
}

// The first `count` of kN, zeros behind.
inline F some_floats(const float* from, std::int64_t count) {
  float values[kN];
  for (std::int64_t i = 0; i < kN; ++i) {
    values[i] = i < count ? from[i] : 0.0f;
  }
  return Vec::load(values);
}

template <typename Dot, int kRows>
inline void dot_some_rows(const RowFormat& format, const std::uint8_t* const* rows,
                          const std::uint8_t* prepared, float* out) {
  const std::int64_t blocks = format.blocks();
  const float* const x_scales = reinterpret_cast<const float*>(prepared + blocks * Dot::kXBytes);
  F sums[kRows];
  for (int r = 0; r < kRows; ++r) {
    sums[r] = Vec::zero();
  }
  for (std::int64_t first = 0; first < blocks; first += kN) {
    const std::int64_t held = least(kN, blocks - first);
    const F some_x_scales = some_floats(x_scales + first, held);
    float scales[kRows][kN];
    for (int r = 0; r < kRows; ++r) {
      const typename Dot::Row row(rows[r], format);
      const F row_scales = row.some_scales(first, held);
      Vec::store(scales[r], Vec::mul(row_scales, some_x_scales));
      if constexpr (Dot::Row::kOffsets) {
        sums[r] = Vec::fma(least_of(row_scales, row.some_offsets(first, held)),
                           some_floats(x_scales + blocks + first, held), sums[r]);
      }
    }
    for (std::int64_t block = first; block < first + held; ++block) {
      const std::uint8_t* const x = prepared + block * Dot::kXBytes;
      for (int r = 0; r < kRows; ++r) {
        sums[r] = Vec::fma(Dot::dot(rows[r] + block * Dot::kBlockBytes, x),
                           Vec::all(scales[r][block - first]), sums[r]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    out[r] = Vec::sum(sums[r]);
  }
}

template <typename Dot>
inline void dot_int_rows(const RowFormat& format, const std::uint8_t* const* rows,
                         std::int64_t count, const std::uint8_t* prepared, float* out) {
  std::int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    dot_some_rows<Dot, 4>(format, rows + i, prepared, out + i);
  }
  for (; i < count; ++i) {
    dot_some_rows<Dot, 1>(format, rows + i, prepared, out + i);
  }
}

// Packed: copies of the rows.
template <typename Dot>
inline std::size_t packed_ints_bytes(const RowFormat& format, std::int64_t count) {
  return (static_cast<std::size_t>(count) * format.row_bytes() + 63) / 64 * 64;
}

template <typename Dot>
inline void pack_int_rows(const RowFormat& format, const std::uint8_t* const* rows,
                          std::int64_t count, std::uint8_t* packed) {
  for (std::int64_t i = 0; i < count; ++i, packed += format.row_bytes()) {
    __builtin_memcpy(packed, rows[i], format.row_bytes());
  }
}

template <typename Dot>
inline void packed_dot_ints(const RowFormat& format, const std::uint8_t* packed,
                            std::int64_t count, const std::uint8_t* prepared, std::int64_t tokens,
                            float* out, std::int64_t out_stride) {
  const std::size_t x_stride = prepared_ints_bytes<Dot>(format);
  for (std::int64_t i = 0; i < count; i += 4) {
    const std::uint8_t* rows[4];
    const std::int64_t held = least(4, count - i);
    for (std::int64_t r = 0; r < held; ++r, packed += format.row_bytes()) {
      rows[r] = packed;
    }
    for (std::int64_t t = 0; t < tokens; ++t) {
      dot_int_rows<Dot>(format, rows, held, prepared + t * x_stride, out + t * out_stride + i);
    }
  }
}
