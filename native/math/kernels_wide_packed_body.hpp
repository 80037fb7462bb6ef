// Dot products of several tokens with int8 and int4 rows, which were packed so that the lanes of wide
// vectors run across rows.

// Packed: kN rows after kN rows, zeros in the place of missing ones; of each such strip, block after
// block, kVectors vectors of quants, one of scales and for int4 one of least values.
template <typename Dot>
constexpr std::int64_t packed_block_bytes() {
  return (Dot::kVectors + 1 + Dot::Row::kOffsets) * kBytes;
}

template <typename Dot>
inline std::size_t packed_strip_bytes(const RowFormat& format) {
  return static_cast<std::size_t>(format.blocks() * packed_block_bytes<Dot>());
}

// Lane i of all rows into the i-th of the blocks from `to` on.
template <typename Dot>
inline void put_lanes(I* rows, std::int64_t blocks, std::uint8_t* to) {
  Ints::transpose(rows);
  for (std::int64_t i = 0; i < blocks; ++i) {
    Ints::store(to + i * packed_block_bytes<Dot>(), rows[i]);
  }
}

// The four columns `i` of a step, of all rows, into the vectors of their packed block.
template <typename Dot>
inline void put_columns(I columns, std::int64_t i, std::uint8_t* block) {
  Ints::store(block + i * kBytes, Dot::first(columns));
  Ints::store(block + (Dot::kVectors / 2 + i) * kBytes, Dot::second(columns));
}

template <typename Dot>
inline void pack_strip(const RowFormat& format, const std::uint8_t* const* rows,
                       std::int64_t count, std::uint8_t* packed) {
  const std::int64_t blocks = format.blocks();
  constexpr std::int64_t kColumns = Dot::kBlockBytes / 4;  // dwords of a block
  I lanes[kN];
  for (std::int64_t first = 0; first < blocks; first += Dot::kStep) {
    const std::int64_t held = least(Dot::kStep, blocks - first);
    for (std::int64_t r = 0; r < kN; ++r) {
      const std::uint8_t* const from = r < count ? rows[r] + first * Dot::kBlockBytes : packed;
      lanes[r] = r >= count           ? Ints::zero()
                 : held == Dot::kStep ? Ints::load(from)
                                      : Ints::load_some(from, held * Dot::kBlockBytes);
    }
    Ints::transpose(lanes);
    for (std::int64_t i = 0; i < held * kColumns; ++i) {
      put_columns<Dot>(lanes[i], i % kColumns,
                       packed + (first + i / kColumns) * packed_block_bytes<Dot>());
    }
  }
  for (std::int64_t first = 0; first < blocks; first += kN) {
    const std::int64_t held = least(kN, blocks - first);
    I least_values[kN];
    for (std::int64_t r = 0; r < kN; ++r) {
      lanes[r] = Ints::zero();
      least_values[r] = Ints::zero();
      if (r < count) {
        const typename Dot::Row row(rows[r], format);
        const F scales = row.some_scales(first, held);
        lanes[r] = Ints::as_ints(scales);
        if constexpr (Dot::Row::kOffsets) {
          least_values[r] = Ints::as_ints(least_of(scales, row.some_offsets(first, held)));
        }
      }
    }
    std::uint8_t* const scales_to =
        packed + first * packed_block_bytes<Dot>() + Dot::kVectors * kBytes;
    put_lanes<Dot>(lanes, held, scales_to);
    if constexpr (Dot::Row::kOffsets) {
      put_lanes<Dot>(least_values, held, scales_to + kBytes);
    }
  }
}

template <typename Dot>
inline void pack_int_rows(const RowFormat& format, const std::uint8_t* const* rows,
                          std::int64_t count, std::uint8_t* packed) {
  for (std::int64_t i = 0; i < count; i += kN, packed += packed_strip_bytes<Dot>(format)) {
    pack_strip<Dot>(format, rows + i, least(kN, count - i), packed);
  }
}

// A tile: of block after block, four bytes of each token for vector after vector of packed quants,
// then the tokens' scales and for int4 their sums of the block.
template <typename Dot>
constexpr std::int64_t tile_block_bytes() {
  return (Dot::kVectors + 1 + Dot::Row::kOffsets) * 4 * kDotTokens;
}

template <typename Dot>
inline std::size_t tile_ints_bytes(const RowFormat& format) {
  return static_cast<std::size_t>((format.blocks() * tile_block_bytes<Dot>() + 63) / 64 * 64);
}

template <typename Dot>
inline void prepare_ints_tile(const RowFormat& format, const float* x, std::int64_t x_stride,
                              std::int64_t tokens, std::uint8_t* tile) {
  if (tokens < kDotTokens) {
    __builtin_memset(tile, 0, tile_ints_bytes<Dot>(format));
  }
  for (std::int64_t block = 0; block < format.blocks(); ++block, tile += tile_block_bytes<Dot>()) {
    float* const scales = reinterpret_cast<float*>(tile) + Dot::kVectors * kDotTokens;
    const std::int64_t first = block * kBlock;
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::int32_t steps[kBlock];
      typename Dot::Step columns[kBlock];
      scales[t] = round_block(x + t * x_stride + first, least(kBlock, format.dim - first),
                              Dot::kLevels, steps);
      Dot::put_columns_x(steps, columns);
      for (std::int64_t v = 0; v < Dot::kVectors; ++v) {
        __builtin_memcpy(tile + 4 * (v * kDotTokens + t),
                         reinterpret_cast<const std::uint8_t*>(columns) + 4 * v, 4);
      }
      if constexpr (Dot::Row::kOffsets) {
        scales[kDotTokens + t] = scales[t] * static_cast<float>(sum_of_steps(steps));
      }
    }
  }
}

// Dots of the rows of kStrips strips, one after the other, with kTokens tokens, all in registers:
// each four bytes of x are loaded once for all strips.
template <typename Dot, int kStrips, int kTokens>
inline void packed_dot_strips(const RowFormat& format, const std::uint8_t* packed,
                              const std::uint8_t* tile, float (*out)[kStrips * kN]) {
  const std::size_t strip_bytes = packed_strip_bytes<Dot>(format);
  F sums[kStrips][kTokens];
  for (int s = 0; s < kStrips; ++s) {
    for (int t = 0; t < kTokens; ++t) {
      sums[s][t] = Vec::zero();
    }
  }
  for (std::int64_t block = 0; block < format.blocks(); ++block) {
    I dots[kStrips][kTokens];
    for (int s = 0; s < kStrips; ++s) {
      for (int t = 0; t < kTokens; ++t) {
        dots[s][t] = Dot::begin();
      }
    }
#pragma GCC unroll 16
    for (int v = 0; v < Dot::kVectors; ++v) {
      I weights[kStrips];
      for (int s = 0; s < kStrips; ++s) {
        weights[s] = Ints::load(packed + s * strip_bytes + v * kBytes);
      }
      for (int t = 0; t < kTokens; ++t) {
        const I x = Ints::all_four_bytes(tile + 4 * (v * kDotTokens + t));
        for (int s = 0; s < kStrips; ++s) {
          dots[s][t] = Dot::add_dot(dots[s][t], weights[s], x);
        }
      }
    }
    const float* const x_scales =
        reinterpret_cast<const float*>(tile) + Dot::kVectors * kDotTokens;
    for (int s = 0; s < kStrips; ++s) {
      const std::uint8_t* const lines = packed + s * strip_bytes + Dot::kVectors * kBytes;
      const F scales = Ints::as_float(Ints::load(lines));
      for (int t = 0; t < kTokens; ++t) {
        const F dot = Ints::to_float(Dot::end(dots[s][t]));
        sums[s][t] = Vec::add(sums[s][t],
                              Vec::mul(dot, Vec::mul(scales, Vec::all(x_scales[t]))));
        if constexpr (Dot::Row::kOffsets) {
          const F least_values = Ints::as_float(Ints::load(lines + kBytes));
          sums[s][t] = Vec::add(sums[s][t],
                                Vec::mul(least_values, Vec::all(x_scales[kDotTokens + t])));
        }
      }
    }
    packed += packed_block_bytes<Dot>();
    tile += tile_block_bytes<Dot>();
  }
  for (int s = 0; s < kStrips; ++s) {
    for (int t = 0; t < kTokens; ++t) {
      Vec::store(out[t] + s * kN, sums[s][t]);
    }
  }
}

// Likewise of `count` rows and `tokens` tokens, which are no more.
template <typename Dot, int kStrips>
inline void packed_dot_some(const RowFormat& format, const std::uint8_t* packed,
                            std::int64_t count, const std::uint8_t* tile, std::int64_t tokens,
                            float* out, std::int64_t out_stride) {
  float dots[kDotTokens][kStrips * kN];
  if (tokens > 2) {
    packed_dot_strips<Dot, kStrips, kDotTokens>(format, packed, tile, dots);
  } else {
    packed_dot_strips<Dot, kStrips, 2>(format, packed, tile, dots);
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    copy_floats(out + t * out_stride, dots[t], count);
  }
}

template <typename Dot>
inline void packed_dot_ints(const RowFormat& format, const std::uint8_t* packed,
                            std::int64_t count, const std::uint8_t* tile, std::int64_t tokens,
                            float* out, std::int64_t out_stride) {
  constexpr std::int64_t kRows = Ints::kStrips * kN;
  std::int64_t i = 0;
  for (; i + (Ints::kStrips - 1) * kN < count; i += kRows) {
    packed_dot_some<Dot, Ints::kStrips>(format, packed, least(kRows, count - i), tile, tokens,
                                        out + i, out_stride);
    packed += Ints::kStrips * packed_strip_bytes<Dot>(format);
  }
  if (i < count) {
    packed_dot_some<Dot, 1>(format, packed, count - i, tile, tokens, out + i, out_stride);
  }
}

template <typename Dot>
inline std::size_t packed_ints_bytes(const RowFormat& format, std::int64_t count) {
  return static_cast<std::size_t>((count + kN - 1) / kN) * packed_strip_bytes<Dot>(format);
}
