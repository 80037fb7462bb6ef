// The bodies of kernels are written once over the vectors of the including file; they have no include
// guard, because each variant has its own copy in its own anonymous namespace. Nothing in them may
// call a shared inline function: the linker could keep a copy made for a newer processor.
//
// This one: how rows are taken apart, and what is done with their values as float.

constexpr std::int64_t kBlock = 32;
constexpr std::int64_t kN = Vec::kLanes;
using F = Vec::F;

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// How a row of each format with scales is taken apart, a block of 32 values at a time.
struct Int8Row {
  static constexpr bool kOffsets = false;
  const std::uint8_t* quants;
  const std::uint8_t* scales;

  Int8Row(const std::uint8_t* row, const RowFormat& format)
      : quants(row), scales(row + format.padded_dim()) {}
  const std::uint8_t* scale_at(std::int64_t block) const { return scales + 2 * block; }
  // Of `count` blocks, at most kN, zeros behind.
  F some_scales(std::int64_t first, std::int64_t count) const {
    return Vec::from_some_halves(scale_at(first), count);
  }
  const std::uint8_t* block(std::int64_t number) const { return quants + number * kBlock; }
  F quant(std::int64_t number, std::int64_t i) const { return Vec::from_int8(block(number) + i); }
};

struct Int4Row {
  static constexpr bool kOffsets = true;
  const std::uint8_t* quants;
  const std::uint8_t* scales;
  const std::uint8_t* offsets;
  const std::uint8_t* tops;

  Int4Row(const std::uint8_t* row, const RowFormat& format)
      : quants(row),
        scales(row + format.padded_dim() / 2),
        offsets(scales + format.blocks()),
        tops(offsets + format.blocks()) {}
  const std::uint8_t* scale_at(std::int64_t block) const { return scales + block; }
  F some_scales(std::int64_t first, std::int64_t count) const {
    return Vec::mul(Vec::from_some_uint8(scale_at(first), count),
                    Vec::mul(Vec::all_half(tops), Vec::all(1.0f / 256)));
  }
  F some_offsets(std::int64_t first, std::int64_t count) const {
    return Vec::mul(Vec::from_some_int8(offsets + first, count),
                    Vec::mul(Vec::all_half(tops + 2), Vec::all(1.0f / 128)));
  }
  const std::uint8_t* block(std::int64_t number) const {
    return quants + number * (kBlock / 2);
  }
  F quant(std::int64_t number, std::int64_t i) const {
    const std::uint8_t* bytes = block(number);
    return i < kBlock / 2 ? Vec::from_low_int4(bytes + i)
                          : Vec::from_high_int4(bytes + i - kBlock / 2);
  }
};

// A row of mxfp4 as one of int4; see kernels.hpp.
struct Mxfp4Row {
  static constexpr bool kOffsets = true;
  const std::uint8_t* quants;
  const std::uint8_t* offsets;  // the scales say them

  Mxfp4Row(const std::uint8_t* row, const RowFormat& format)
      : quants(row), offsets(row + format.padded_dim() / 2) {}
  const std::uint8_t* scale_at(std::int64_t block) const { return offsets + block; }
  F some_scales(std::int64_t first, std::int64_t count) const {
    return Vec::from_some_exponents(scale_at(first), count);
  }
  F some_offsets(std::int64_t first, std::int64_t count) const {
    return Vec::mul(some_scales(first, count), Vec::all(-4));
  }
  const std::uint8_t* block(std::int64_t number) const {
    return quants + number * (kBlock / 2);
  }
  F quant(std::int64_t number, std::int64_t i) const {
    const std::uint8_t* bytes = block(number);
    return i < kBlock / 2 ? Vec::from_low_mxfp4(bytes + i)
                          : Vec::from_high_mxfp4(bytes + i - kBlock / 2);
  }
};

// What lies so far behind what is computed on is fetched meanwhile: rows follow each other in memory.
constexpr std::int64_t kBytesAhead = 8192;

// Several rows at a time are too many streams for the processor to foresee; so those so many places
// further on are fetched meanwhile.
inline std::int64_t rows_ahead(const RowFormat& format, std::int64_t at_once) {
  const std::int64_t rows = kBytesAhead / static_cast<std::int64_t>(format.row_bytes());
  return rows < at_once ? at_once : rows;
}

inline void copy_floats(float* to, const float* from, std::int64_t count) {
  __builtin_memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
}

// The block of x that is cut short by the end of the row, zeros behind.
struct Tail {
  float values[kBlock];

  Tail(const float* from, std::int64_t count) {
    for (std::int64_t i = 0; i < kBlock; ++i) {
      values[i] = i < count ? from[i] : 0.0f;
    }
  }
};

// The last, short block of an fp16 row, zeros behind.
struct HalfTail {
  std::uint8_t bytes[2 * kBlock];

  HalfTail(const std::uint8_t* from, std::int64_t count) {
    for (std::int64_t i = 0; i < 2 * kBlock; ++i) {
      bytes[i] = i < 2 * count ? from[i] : 0;
    }
  }
};

// h times the scales and offsets of `count` blocks of a row, at most kN.
template <typename Row>
struct Lines {
  float scales[kN];
  float offsets[Row::kOffsets ? kN : 1];

  void read(const Row& row, std::int64_t first, std::int64_t count, float h) {
    Vec::store(scales, Vec::mul(row.some_scales(first, count), Vec::all(h)));
    if constexpr (Row::kOffsets) {
      Vec::store(offsets, Vec::mul(row.some_offsets(first, count), Vec::all(h)));
    }
  }
  // sum + h * values of quants of block `number` of those read.
  F add(F sum, std::int64_t number, F quants) const {
    const F scale = Vec::all(scales[number]);
    if constexpr (Row::kOffsets) {
      return Vec::add(sum, Vec::fma(quants, scale, Vec::all(offsets[number])));
    } else {
      return Vec::fma(quants, scale, sum);
    }
  }
};

// out [32] += the block of each row, which is number `number` of its lines.
template <typename Row, int kRows>
inline void add_scaled_block(const RowFormat& format, const std::uint8_t* const* rows,
                             const std::uint8_t* const* next, const Lines<Row>* lines,
                             std::int64_t number, std::int64_t block, float* out) {
  F sums[kBlock / kN];
  for (std::int64_t i = 0; i < kBlock / kN; ++i) {
    sums[i] = Vec::load(out + i * kN);
  }
  for (int r = 0; r < kRows; ++r) {
    const Row row(rows[r], format);
    __builtin_prefetch(Row(next[r], format).block(block));
    for (std::int64_t i = 0; i < kBlock / kN; ++i) {
      sums[i] = lines[r].add(sums[i], number, row.quant(block, i * kN));
    }
  }
  for (std::int64_t i = 0; i < kBlock / kN; ++i) {
    Vec::store(out + i * kN, sums[i]);
  }
}

// `next`: rows to fetch meanwhile.
template <typename Row, int kRows>
inline void add_scaled_rows(const RowFormat& format, const std::uint8_t* const* rows,
                            const std::uint8_t* const* next, const float* h, Columns columns,
                            float* out) {
  for (std::int64_t first = columns.first; first < columns.end; first += kN) {
    const std::int64_t end = least(first + kN, columns.end);
    Lines<Row> lines[kRows];
    for (int r = 0; r < kRows; ++r) {
      lines[r].read(Row(rows[r], format), first, end - first, h[r]);
      __builtin_prefetch(Row(next[r], format).scale_at(first));
    }
    for (std::int64_t block = first; block < end; ++block) {
      float* const columns_out = out + block * kBlock;
      const std::int64_t held = format.dim - block * kBlock;
      if (held >= kBlock) {
        add_scaled_block<Row, kRows>(format, rows, next, lines, block - first, block, columns_out);
      } else {
        Tail tail(columns_out, held);
        add_scaled_block<Row, kRows>(format, rows, next, lines, block - first, block, tail.values);
        copy_floats(columns_out, tail.values, held);
      }
    }
  }
}

template <int kRows>
inline void add_half_block(const std::uint8_t* const* blocks, const F* h, float* out) {
  for (std::int64_t i = 0; i < kBlock; i += kN) {
    F sum = Vec::load(out + i);
    for (int r = 0; r < kRows; ++r) {
      sum = Vec::fma(h[r], Vec::from_half(blocks[r] + 2 * i), sum);
    }
    Vec::store(out + i, sum);
  }
}

template <int kRows>
inline void add_half_rows(const RowFormat& format, const std::uint8_t* const* rows,
                          const float* factors, Columns columns, float* out) {
  F h[kRows];
  for (int r = 0; r < kRows; ++r) {
    h[r] = Vec::all(factors[r]);
  }
  const std::int64_t whole = format.dim / kBlock;
  const std::uint8_t* blocks[kRows];
  for (std::int64_t block = columns.first; block < least(columns.end, whole); ++block) {
    for (int r = 0; r < kRows; ++r) {
      blocks[r] = rows[r] + 2 * block * kBlock;
    }
    add_half_block<kRows>(blocks, h, out + block * kBlock);
  }
  const std::int64_t rest = format.dim - whole * kBlock;
  if (columns.end > whole && rest > 0) {
    Tail tail(out + whole * kBlock, rest);
    for (int r = 0; r < kRows; ++r) {
      const HalfTail halves(rows[r] + 2 * whole * kBlock, rest);
      blocks[0] = halves.bytes;
      add_half_block<1>(blocks, h + r, tail.values);
    }
    copy_floats(out + whole * kBlock, tail.values, rest);
  }
}

template <int kRows>
inline void add_some_rows(const RowFormat& format, const std::uint8_t* const* rows,
                          const std::uint8_t* const* next, const float* h, Columns columns,
                          float* out) {
  switch (format.codec) {
    case Codec::kInt8: return add_scaled_rows<Int8Row, kRows>(format, rows, next, h, columns, out);
    case Codec::kInt4: return add_scaled_rows<Int4Row, kRows>(format, rows, next, h, columns, out);
    case Codec::kMxfp4:
      return add_scaled_rows<Mxfp4Row, kRows>(format, rows, next, h, columns, out);
    case Codec::kFp16: return add_half_rows<kRows>(format, rows, h, columns, out);
  }
}

void add_rows(const RowFormat& format, const std::uint8_t* const* rows, const float* h,
              std::int64_t count, Columns columns, float* out) {
  const std::int64_t ahead = rows_ahead(format, Vec::kAddRows);
  std::int64_t i = 0;
  for (; i + Vec::kAddRows <= count; i += Vec::kAddRows) {
    const std::uint8_t* const* const next =
        rows + (i + ahead + Vec::kAddRows <= count ? i + ahead : i);
    add_some_rows<Vec::kAddRows>(format, rows + i, next, h + i, columns, out);
  }
  for (; i < count; ++i) {
    add_some_rows<1>(format, rows + i, rows + i, h + i, columns, out);
  }
}

template <typename Row>
inline void decode_scaled_row(const Row& row, Columns columns, float* out, std::int64_t stride) {
  Lines<Row> lines;
  for (std::int64_t block = columns.first; block < columns.end; ++block, out += stride) {
    const std::int64_t number = (block - columns.first) % kN;
    if (number == 0) {
      lines.read(row, block, least(kN, columns.end - block), 1);
    }
    for (std::int64_t i = 0; i < kBlock; i += kN) {
      Vec::store(out + i, lines.add(Vec::zero(), number, row.quant(block, i)));
    }
  }
}

inline void decode_half_block(const std::uint8_t* halves, float* out) {
  for (std::int64_t i = 0; i < kBlock; i += kN) {
    Vec::store(out + i, Vec::from_half(halves + 2 * i));
  }
}

inline void decode_half_row(const std::uint8_t* row, std::int64_t dim, Columns columns, float* out,
                            std::int64_t stride) {
  const std::int64_t whole = dim / kBlock;
  for (std::int64_t block = columns.first; block < columns.end; ++block, out += stride) {
    if (block < whole) {
      decode_half_block(row + 2 * block * kBlock, out);
    } else {
      const HalfTail cut(row + 2 * block * kBlock, dim - block * kBlock);
      decode_half_block(cut.bytes, out);
    }
  }
}

void decode_rows(const RowFormat& format, const std::uint8_t* const* rows, std::int64_t count,
                 Columns columns, float* tile) {
  const std::int64_t stride = count * kBlock;
  for (std::int64_t r = 0; r < count; ++r, tile += kBlock) {
    switch (format.codec) {
      case Codec::kInt8:
        decode_scaled_row(Int8Row(rows[r], format), columns, tile, stride);
        break;
      case Codec::kInt4:
        decode_scaled_row(Int4Row(rows[r], format), columns, tile, stride);
        break;
      case Codec::kMxfp4:
        decode_scaled_row(Mxfp4Row(rows[r], format), columns, tile, stride);
        break;
      case Codec::kFp16:
        decode_half_row(rows[r], format.dim, columns, tile, stride);
        break;
    }
  }
}

// out [kTokens, 32] += h * a block of all rows, two vectors of columns in registers at a time.
template <int kTokens>
inline void tile_add_block(const float* tile, std::int64_t count, const float* h,
                           std::int64_t h_stride, float* out, std::int64_t out_stride) {
  for (std::int64_t i = 0; i < kBlock; i += 2 * kN) {
    F low[kTokens];
    F high[kTokens];
    for (int t = 0; t < kTokens; ++t) {
      low[t] = Vec::load(out + t * out_stride + i);
      high[t] = Vec::load(out + t * out_stride + i + kN);
    }
    for (std::int64_t r = 0; r < count; ++r) {
      const F weights_low = Vec::load(tile + r * kBlock + i);
      const F weights_high = Vec::load(tile + r * kBlock + i + kN);
      for (int t = 0; t < kTokens; ++t) {
        const F factor = Vec::all(h[t * h_stride + r]);
        low[t] = Vec::fma(factor, weights_low, low[t]);
        high[t] = Vec::fma(factor, weights_high, high[t]);
      }
    }
    for (int t = 0; t < kTokens; ++t) {
      Vec::store(out + t * out_stride + i, low[t]);
      Vec::store(out + t * out_stride + i + kN, high[t]);
    }
  }
}

void tile_add(const RowFormat& format, const float* tile, std::int64_t count, Columns columns,
              const float* h, std::int64_t h_stride, std::int64_t tokens, float* out) {
  const std::int64_t whole = format.dim / kBlock;
  for (std::int64_t block = columns.first; block < columns.end; ++block, tile += count * kBlock) {
    float* const columns_out = out + block * kBlock;
    std::int64_t t = 0;
    for (; block < whole && t + Vec::kAddTokens <= tokens; t += Vec::kAddTokens) {
      tile_add_block<Vec::kAddTokens>(tile, count, h + t * h_stride, h_stride,
                                      columns_out + t * format.dim, format.dim);
    }
    for (; t < tokens; ++t) {
      float* const token_out = columns_out + t * format.dim;
      if (block < whole) {
        tile_add_block<1>(tile, count, h + t * h_stride, h_stride, token_out, format.dim);
      } else {
        Tail tail(token_out, format.dim - block * kBlock);
        tile_add_block<1>(tile, count, h + t * h_stride, h_stride, tail.values, kBlock);
        copy_floats(token_out, tail.values, format.dim - block * kBlock);
      }
    }
  }
}
