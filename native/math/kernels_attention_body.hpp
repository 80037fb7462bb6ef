// Attention of some queries to a segment of keys and values, over a struct Pairs: vectors of pairs of
// 16 bits. Dots are of integers and sums of floats have one order, so that results are the same bytes
// in all variants.

using Halves = std::uint16_t;

// out [kQueries, 32] = pairs [count, 32, 2] . factors [kQueries, count, 2].
template <typename Value, int kQueries>
inline void pair_dots(const Value* pairs, std::int64_t count, const std::int16_t* factors,
                      std::int64_t stride, float* out) {
  constexpr std::int64_t kLanes = Vec::kLanes;
  for (std::int64_t lane = 0; lane < kTileTokens; lane += 2 * kLanes) {
    typename Pairs::Sum sums[kQueries][2];
    for (int q = 0; q < kQueries; ++q) {
      sums[q][0] = sums[q][1] = Pairs::zero();
    }
    const Value* from = pairs + 2 * lane;
    for (std::int64_t p = 0; p < count; ++p, from += 2 * kTileTokens) {
      const auto first = Pairs::load(from);
      const auto second = Pairs::load(from + 2 * kLanes);
      for (int q = 0; q < kQueries; ++q) {
        const auto factor = Pairs::all(factors + q * stride + 2 * p);
        sums[q][0] = Pairs::add_dot(sums[q][0], first, factor);
        sums[q][1] = Pairs::add_dot(sums[q][1], second, factor);
      }
    }
    for (int q = 0; q < kQueries; ++q) {
      Vec::store(out + q * kTileTokens + lane, Pairs::to_float(sums[q][0]));
      Vec::store(out + q * kTileTokens + lane + kLanes, Pairs::to_float(sums[q][1]));
    }
  }
}

template <typename Value>
inline void pair_dots_of(std::int64_t queries, const Value* pairs, std::int64_t count,
                         const std::int16_t* factors, std::int64_t stride, float* out) {
  switch (queries) {
    case 1: return pair_dots<Value, 1>(pairs, count, factors, stride, out);
    case 2: return pair_dots<Value, 2>(pairs, count, factors, stride, out);
    case 3: return pair_dots<Value, 3>(pairs, count, factors, stride, out);
    default: return pair_dots<Value, 4>(pairs, count, factors, stride, out);
  }
}
constexpr std::int64_t kQueriesAtOnce = 4;

// The scales of a tile's tokens.
struct TileScales {
  float values[kTileTokens];

  explicit TileScales(const std::uint8_t* from) {
    Halves halves[kTileTokens];
    __builtin_memcpy(halves, from, sizeof halves);
    std::uint32_t bits[kTileTokens];
    for (std::int64_t t = 0; t < kTileTokens; ++t) {
      bits[t] = static_cast<std::uint32_t>(halves[t]) << 16;
    }
    __builtin_memcpy(values, bits, sizeof values);
  }
};

// s [32] = cap * tanh(s / cap).
inline void cap_scores(float* s, float cap) {
  float powers[kTileTokens];
  const float twice = 2 / cap;
  for (std::int64_t i = 0; i < kTileTokens; ++i) {
    powers[i] = (s[i] < 0 ? s[i] : -s[i]) * twice;
  }
  exponentials<kTileTokens>(powers);
  for (std::int64_t i = 0; i < kTileTokens; ++i) {
    const float capped = cap * ((1 - powers[i]) / (1 + powers[i]));
    s[i] = s[i] < 0 ? -capped : capped;
  }
}

// `scores` [tokens of the segment] of one query become weights; those before `begin` and from `end`
// on are 0.
inline void weigh(float* scores, std::int64_t begin, std::int64_t end, AttendedRow row) {
  const std::int64_t padded = (end + kTileTokens - 1) / kTileTokens * kTileTokens;
  for (std::int64_t t = 0; t < begin; ++t) {
    scores[t] = -__builtin_inff();
  }
  for (std::int64_t t = end; t < padded; ++t) {
    scores[t] = -__builtin_inff();
  }
  for (std::int64_t t = padded; t < kSegmentTokens; ++t) {
    scores[t] = 0;
  }
  float peaks[kTileTokens];
  float sums[kTileTokens];
  for (std::int64_t i = 0; i < kTileTokens; ++i) {
    peaks[i] = -__builtin_inff();
    sums[i] = 0;
  }
  for (std::int64_t t = 0; t < padded; t += kTileTokens) {
    for (std::int64_t i = 0; i < kTileTokens; ++i) {
      peaks[i] = peaks[i] < scores[t + i] ? scores[t + i] : peaks[i];
    }
  }
  float peak = peaks[0];
  for (std::int64_t i = 1; i < kTileTokens; ++i) {
    peak = peak < peaks[i] ? peaks[i] : peak;
  }
  for (std::int64_t t = 0; t < padded; t += kTileTokens) {
    for (std::int64_t i = 0; i < kTileTokens; ++i) {
      scores[t + i] -= peak;
    }
    exponentials<kTileTokens>(scores + t);
    for (std::int64_t i = 0; i < kTileTokens; ++i) {
      scores[t + i] = t + i >= begin && t + i < end ? scores[t + i] : 0;
      sums[i] += scores[t + i];
    }
  }
  for (std::int64_t apart = kTileTokens / 2; apart > 0; apart /= 2) {
    for (std::int64_t i = 0; i < apart; ++i) {
      sums[i] += sums[i + apart];
    }
  }
  row.peak() = peak;
  row.total() = sums[0];
}

// factors [32] = weights times the values' scales in whole steps; returns a step.
inline float weight_factors(const float* weights, const TileScales& scales, std::int16_t* factors) {
  float products[kTileTokens];
  std::uint32_t bits[kTileTokens];
  for (std::int64_t t = 0; t < kTileTokens; ++t) {
    products[t] = weights[t] * scales.values[t];
  }
  __builtin_memcpy(bits, products, sizeof bits);
  std::uint32_t top = 0;
  for (std::int64_t t = 0; t < kTileTokens; ++t) {
    top = top < (bits[t] & 0x7FFFFFFF) ? bits[t] & 0x7FFFFFFF : top;
  }
  float peak;
  __builtin_memcpy(&peak, &top, sizeof peak);
  if (top >= 0x7F800000 || peak < kLeastPeak) {
    __builtin_memset(factors, 0, kTileTokens * sizeof *factors);
    return top >= 0x7F800000 ? __builtin_nanf("") : 0;
  }
  const float inverse = kFactorLevels / peak;
  for (std::int64_t t = 0; t < kTileTokens; ++t) {
    factors[t] =
        static_cast<std::int16_t>((products[t] * inverse + 0x1.8p23f) - 0x1.8p23f);
  }
  return peak / kFactorLevels;
}

template <typename Value>
inline void score_tile(const KvTiles& tiles, const std::uint8_t* tile, const Queries& queries,
                       float* scores) {
  const std::int64_t blocks = tiles.blocks();
  const Value* const keys = reinterpret_cast<const Value*>(tile);
  float dots[kQueriesAtOnce * kTileTokens];
  for (std::int64_t query = 0; query < queries.count; query += kQueriesAtOnce) {
    const std::int64_t some = least(kQueriesAtOnce, queries.count - query);
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t first = block * kKeyBlock;
      const TileScales scales(tile + tiles.key_scales_at() +
                              static_cast<std::size_t>(block * kTileTokens) * sizeof(Halves));
      pair_dots_of(some, keys + first * kTileTokens, least(kKeyBlock, tiles.head_dim - first) / 2,
                   queries.steps + query * tiles.head_dim + first, tiles.head_dim, dots);
      for (std::int64_t q = 0; q < some; ++q) {
        const float scale = queries.scales[(query + q) * blocks + block];
        float* const out = scores + (query + q) * kSegmentTokens;
        for (std::int64_t t = 0; t < kTileTokens; ++t) {
          const float term = dots[q * kTileTokens + t] * (scales.values[t] * scale);
          out[t] = block == 0 ? term : out[t] + term;
        }
      }
    }
  }
}

template <typename Value>
inline void add_values(const KvTiles& tiles, const std::uint8_t* tile, std::int64_t count,
                       const float* weights, float* rows) {
  const Value* const values = reinterpret_cast<const Value*>(tile + tiles.values_at());
  const TileScales scales(tile + tiles.value_scales_at());
  float dots[kQueriesAtOnce * kTileTokens];
  std::int16_t factors[kQueriesAtOnce * kTileTokens];
  float steps[kQueriesAtOnce];
  for (std::int64_t query = 0; query < count; query += kQueriesAtOnce) {
    const std::int64_t some = least(kQueriesAtOnce, count - query);
    for (std::int64_t q = 0; q < some; ++q) {
      steps[q] = weight_factors(weights + (query + q) * kSegmentTokens, scales,
                                factors + q * kTileTokens);
    }
    for (std::int64_t block = 0; block < tiles.blocks(); ++block) {
      pair_dots_of(some, values + block * kKeyBlock * kTileTokens, kTileTokens / 2, factors,
                   kTileTokens, dots);
      for (std::int64_t q = 0; q < some; ++q) {
        float* const out = rows + (query + q) * AttendedRow::stride(tiles) + block * kKeyBlock;
        for (std::int64_t i = 0; i < kKeyBlock; ++i) {
          out[i] += dots[q * kTileTokens + i] * steps[q];
        }
      }
    }
  }
}

template <typename Value>
inline void attend_to(const KvTiles& tiles, const std::uint8_t* segment, std::int64_t first,
                      const Queries& queries, float* scores, float* rows) {
  const std::int64_t stride = AttendedRow::stride(tiles);
  const std::int64_t tokens = least(kSegmentTokens, queries.end(queries.count - 1) - first);
  const std::int64_t begin = queries.begin(0) - first;    // the first query sees the oldest token
  const std::int64_t from = begin <= 0 ? 0 : begin / kTileTokens * kTileTokens;
  for (std::int64_t t = from; t < tokens; t += kTileTokens) {
    score_tile<Value>(tiles, segment + static_cast<std::size_t>(t / kTileTokens) * tiles.bytes(),
                      queries, scores + t);
    for (std::int64_t q = 0; queries.soft_cap != 0 && q < queries.count; ++q) {
      cap_scores(scores + q * kSegmentTokens + t, queries.soft_cap);
    }
  }
  for (std::int64_t q = 0; q < queries.count; ++q) {
    float* const row = rows + q * stride;
    __builtin_memset(row, 0, static_cast<std::size_t>(stride) * sizeof *row);
    const std::int64_t unseen = queries.begin(q) <= first ? 0 : queries.begin(q) - first;
    const std::int64_t seen = least(tokens, queries.end(q) - first);
    const bool any = unseen < seen;     // else the window may begin far behind the segment
    weigh(scores + q * kSegmentTokens, any ? unseen : 0, any ? seen : 0,
          AttendedRow{row, tiles.padded_dim()});
  }
  for (std::int64_t t = from; t < tokens; t += kTileTokens) {
    add_values<Value>(tiles, segment + static_cast<std::size_t>(t / kTileTokens) * tiles.bytes(),
                      queries.count, scores + t, rows);
  }
}

void attend(const KvTiles& tiles, const std::uint8_t* segment, std::int64_t first,
            const Queries& queries, float* scores, float* rows) {
  if (tiles.bits == 8) {
    attend_to<std::int8_t>(tiles, segment, first, queries, scores, rows);
  } else {
    attend_to<std::int16_t>(tiles, segment, first, queries, scores, rows);
  }
}
