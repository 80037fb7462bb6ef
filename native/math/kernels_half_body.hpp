// Dot products of fp16 rows, in float; x is prepared by padding it with zeros.

inline void half_block_dot(const std::uint8_t* halves, const float* x, F& sum0, F& sum1) {
  for (std::int64_t i = 0; i < kBlock; i += 2 * kN) {
    sum0 = Vec::fma(Vec::from_half(halves + 2 * i), Vec::load(x + i), sum0);
    sum1 = Vec::fma(Vec::from_half(halves + 2 * (i + kN)), Vec::load(x + i + kN), sum1);
  }
}

inline float dot_half(const std::uint8_t* row, const float* x, std::int64_t dim) {
  const std::int64_t whole = dim / kBlock;
  F sums[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
  std::int64_t block = 0;
  for (; block + 2 <= whole; block += 2) {
    __builtin_prefetch(row + 2 * block * kBlock + kBytesAhead);
    __builtin_prefetch(row + 2 * (block + 1) * kBlock + kBytesAhead);
    half_block_dot(row + 2 * block * kBlock, x + block * kBlock, sums[0], sums[1]);
    half_block_dot(row + 2 * (block + 1) * kBlock, x + (block + 1) * kBlock, sums[2], sums[3]);
  }
  if (block < whole) {
    half_block_dot(row + 2 * block * kBlock, x + block * kBlock, sums[0], sums[1]);
  }
  if (whole * kBlock < dim) {
    const HalfTail halves(row + 2 * whole * kBlock, dim - whole * kBlock);
    half_block_dot(halves.bytes, x + whole * kBlock, sums[2], sums[3]);
  }
  return Vec::sum(Vec::add(Vec::add(sums[0], sums[1]), Vec::add(sums[2], sums[3])));
}

inline std::size_t prepared_half_bytes(const RowFormat& format) {
  return (static_cast<std::size_t>(format.padded_dim()) * sizeof(float) + 63) / 64 * 64;
}

inline void prepare_half(const RowFormat& format, const float* x, std::uint8_t* prepared) {
  float* const padded = reinterpret_cast<float*>(prepared);
  copy_floats(padded, x, format.dim);
  for (std::int64_t i = format.dim; i < format.padded_dim(); ++i) {
    padded[i] = 0;
  }
}

inline void dot_half_rows(const RowFormat& format, const std::uint8_t* const* rows,
                          std::int64_t count, const std::uint8_t* prepared, std::int64_t tokens,
                          float* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::uint8_t* const x =
          prepared + static_cast<std::size_t>(t) * prepared_half_bytes(format);
      out[t * count + i] = dot_half(rows[i], reinterpret_cast<const float*>(x), format.dim);
    }
  }
}

// A tile: x of each token, likewise.
inline void prepare_half_tile(const RowFormat& format, const float* x, std::int64_t x_stride,
                              std::int64_t tokens, std::uint8_t* tile) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    prepare_half(format, x + t * x_stride,
                 tile + static_cast<std::size_t>(t) * prepared_half_bytes(format));
  }
}

// Packed: the rows as float.
inline std::size_t packed_half_bytes(const RowFormat& format, std::int64_t count) {
  return (static_cast<std::size_t>(count * format.padded_dim()) * sizeof(float) + 63) / 64 * 64;
}

inline void pack_half_rows(const RowFormat& format, const std::uint8_t* const* rows,
                           std::int64_t count, std::uint8_t* packed) {
  float* row = reinterpret_cast<float*>(packed);
  for (std::int64_t i = 0; i < count; ++i, row += format.padded_dim()) {
    decode_half_row(rows[i], format.dim, {0, format.blocks()}, row, kBlock);
  }
}

// Dots of kRows rows with kTokens tokens, all in registers.
template <int kRows, int kTokens>
inline void packed_dot_block(std::int64_t padded, const float* rows, const float* x, float* out,
                             std::int64_t out_stride) {
  F sums[kTokens][kRows];
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < kRows; ++r) {
      sums[t][r] = Vec::zero();
    }
  }
  for (std::int64_t i = 0; i < padded; i += kN) {
    F weights[kRows];
    for (int r = 0; r < kRows; ++r) {
      weights[r] = Vec::load(rows + r * padded + i);
    }
    for (int t = 0; t < kTokens; ++t) {
      const F value = Vec::load(x + t * padded + i);
      for (int r = 0; r < kRows; ++r) {
        sums[t][r] = Vec::fma(weights[r], value, sums[t][r]);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int r = 0; r < kRows; ++r) {
      out[t * out_stride + r] = Vec::sum(sums[t][r]);
    }
  }
}

template <int kTokens>
inline void packed_dot_tokens(std::int64_t padded, const float* rows, std::int64_t count,
                              const float* x, float* out, std::int64_t out_stride) {
  std::int64_t r = 0;
  for (; r + Vec::kDotRows <= count; r += Vec::kDotRows) {
    packed_dot_block<Vec::kDotRows, kTokens>(padded, rows + r * padded, x, out + r, out_stride);
  }
  for (; r + 2 <= count; r += 2) {
    packed_dot_block<2, kTokens>(padded, rows + r * padded, x, out + r, out_stride);
  }
  for (; r < count; ++r) {
    packed_dot_block<1, kTokens>(padded, rows + r * padded, x, out + r, out_stride);
  }
}

void packed_dot_half(const RowFormat& format, const std::uint8_t* packed, std::int64_t count,
                     const std::uint8_t* tile, std::int64_t tokens, float* out,
                     std::int64_t out_stride) {
  const std::int64_t padded = format.padded_dim();
  const float* const rows = reinterpret_cast<const float*>(packed);
  const float* const x = reinterpret_cast<const float*>(tile);
  if (tokens == kDotTokens) {
    packed_dot_tokens<kDotTokens>(padded, rows, count, x, out, out_stride);
    return;
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    packed_dot_tokens<1>(padded, rows, count, x + t * padded, out + t * out_stride, out_stride);
  }
}
