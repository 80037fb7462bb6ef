#include "math/attention_math.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace flash_llm {
namespace {

constexpr std::int64_t kFewTokens = 8;
constexpr std::int64_t kMostRanges = 512;       // times tokens
constexpr std::int64_t kQueriesOfUnit = 32;     // whose scores stay in a processor's cache
constexpr std::int64_t kWorthSharing = 60000;   // products: below, another thread begins too late
constexpr float kLeastPeak = 1e-30f;

std::int64_t parts(std::int64_t whole, std::int64_t part) { return (whole + part - 1) / part; }

std::size_t size(std::int64_t count) { return static_cast<std::size_t>(count); }

// The largest magnitude; NaN where there is one. Found as whole numbers, which have the same order.
float peak_of(const float* values, std::int64_t count) {
  std::uint32_t peak = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    peak = std::max(peak, bits & 0x7FFFFFFF);
  }
  float found;
  std::memcpy(&found, &peak, sizeof found);
  return found;
}

// The upper half of a float32 that is at least as large, and what it stands for.
struct HalfScale {
  std::uint16_t bits;
  float value;

  explicit HalfScale(float scale) {
    std::uint32_t whole;
    std::memcpy(&whole, &scale, sizeof whole);
    const bool finite = (whole & 0x7F800000) != 0x7F800000;
    bits = static_cast<std::uint16_t>(finite ? (whole + 0xFFFF) >> 16 : 0x7FC0);
    whole = static_cast<std::uint32_t>(bits) << 16;
    std::memcpy(&value, &whole, sizeof value);
  }
};

// put(i, whole steps) for each value, in units that are `levels` at most; returns the unit.
template <typename Put>
HalfScale in_steps(const float* values, std::int64_t count, float levels, Put put) {
  const float peak = peak_of(values, count);
  const bool usable = peak >= kLeastPeak && std::isfinite(peak);
  const HalfScale scale(usable ? peak / levels : std::isfinite(peak) ? 0 : peak);
  if (!usable) {
    for (std::int64_t i = 0; i < count; ++i) {
      put(i, 0);
    }
    return scale;
  }
  const float inverse = 1 / scale.value;
  for (std::int64_t i = 0; i < count; ++i) {
    put(i, static_cast<int>((values[i] * inverse + 0x1.8p23f) - 0x1.8p23f));
  }
  return scale;
}

// Puts together what a query attended to in two neighbouring parts of the context.
void fold(AttendedRow into, AttendedRow next) {
  if (next.total() == 0) {
    return;
  }
  const float peak = std::max(into.peak(), next.peak());
  const float kept = into.total() == 0 ? 0 : std::exp(into.peak() - peak);
  const float added = std::exp(next.peak() - peak);
  for (std::int64_t i = 0; i < into.padded_dim; ++i) {
    into.data[i] = into.data[i] * kept + next.data[i] * added;
  }
  into.total() = into.total() * kept + next.total() * added;
  into.peak() = peak;
}

}  // namespace

AttentionRoom::AttentionRoom(const AttentionShape& shape) {
  const KvTiles tiles = shape.tiles();
  const std::int64_t queries = shape.most_tokens * shape.heads;
  const std::int64_t few = std::min(shape.most_tokens, kFewTokens);
  const std::int64_t ranges = std::min(kMostRanges, few * parts(shape.context, kSegmentTokens));
  const std::int64_t unit = std::max(kQueriesOfUnit, shape.group());
  angles = static_cast<std::int64_t>(shape.rotations.size()) * shape.most_tokens * shape.pairs();
  steps = queries * shape.head_dim;
  scales = queries * tiles.blocks();
  rows = std::max(shape.most_tokens, ranges) * shape.heads * AttendedRow::stride(tiles);
  scores = unit * kSegmentTokens;
  unit_rows = unit * AttendedRow::stride(tiles);
}

std::size_t AttentionRoom::bytes(int threads) const {
  const std::int64_t floats = 2 * angles + scales + rows + threads * (scores + unit_rows);
  return size(floats) * sizeof(float) + size(steps) * sizeof(std::int16_t);
}

AttentionMath::AttentionMath(const AttentionShape& shape, const Kernels& kernels, int threads)
    : shape_(shape), tiles_(shape.tiles()), kernels_(kernels) {
  const AttentionRoom room(shape);
  cosines_.resize(size(room.angles));
  sines_.resize(size(room.angles));
  steps_.resize(size(room.steps));
  scales_.resize(size(room.scales));
  rows_.resize(cache_lines(size(room.rows) * sizeof(float)));
  scratch_.resize(size(threads));
  for (Scratch& scratch : scratch_) {
    scratch.scores.resize(size(room.scores));
    scratch.rows.resize(size(room.unit_rows));
  }
}

AttentionMath::Units AttentionMath::units(std::int64_t window, std::int64_t position,
                                          std::int64_t tokens) const {
  const std::int64_t block =
      std::min(tokens, std::max<std::int64_t>(1, kQueriesOfUnit / shape_.group()));
  const std::int64_t segments = parts(position + tokens, kSegmentTokens);
  const bool few = tokens <= kFewTokens && tokens * segments <= kMostRanges;
  return {window, shape_.cache_tiles(window), position, tokens, block, parts(tokens, block),
          few ? 1 : segments, few ? segments : 1};
}

void AttentionMath::attend(ThreadPool& pool, const LayerReach& reach,
                           const std::vector<float>& sinks, std::uint8_t* cache, Outputs qkv,
                           std::int64_t position, Outputs out) {
  find_angles(position, qkv.tokens);
  pool.share(qkv.tokens, [&](std::int64_t token, int) {
    take_in(reach, cache, qkv.row(token), position, token);
  });
  const Units how = units(reach.window, position, qkv.tokens);
  const std::int64_t all = position + qkv.tokens;
  const std::int64_t seen = reach.window == 0 ? all : std::min(all, reach.window);
  const std::int64_t products = qkv.tokens * seen * shape_.query_width();
  pool.share(shape_.kv_heads * how.blocks * how.ranges, [&](std::int64_t unit, int thread) {
    attend_unit(how, unit, cache, scratch_[size(thread)]);
  }, products < kWorthSharing);
  pool.share(qkv.tokens, [&](std::int64_t token, int) {
    put_together(how, sinks, token, out.row(token));
  });
}

void AttentionMath::find_angles(std::int64_t position, std::int64_t tokens) {
  if (position == angles_position_ && tokens == angles_tokens_) {
    return;  // as in the layer before
  }
  for (std::size_t rotation = 0; rotation < shape_.rotations.size(); ++rotation) {
    const auto& [frequencies, scale] = shape_.rotations[rotation];
    std::size_t next = rotation * size(shape_.most_tokens) * frequencies.size();
    for (std::int64_t token = 0; token < tokens; ++token) {
      for (const double frequency : frequencies) {
        const double angle = static_cast<double>(position + token) * frequency;
        cosines_[next] = static_cast<float>(scale * std::cos(angle));
        sines_[next++] = static_cast<float>(scale * std::sin(angle));
      }
    }
  }
  angles_position_ = position;
  angles_tokens_ = tokens;
}

void AttentionMath::take_in(const LayerReach& reach, std::uint8_t* cache, float* qkv,
                            std::int64_t position, std::int64_t token) {
  const std::int64_t group = shape_.group();
  for (std::int64_t head = 0; head < shape_.heads; ++head, qkv += shape_.head_dim) {
    turn(reach.rotation, qkv, token);
    const std::int64_t kv_head = head / group;
    put_query(qkv, size((kv_head * shape_.most_tokens + token) * group + head % group));
  }
  const std::int64_t tiles = shape_.cache_tiles(reach.window);
  const std::int64_t tile = (position + token) / kTileTokens % tiles;
  const std::int64_t place = (position + token) % kTileTokens;
  for (std::int64_t kv_head = 0; kv_head < shape_.kv_heads; ++kv_head, qkv += shape_.head_dim) {
    turn(reach.rotation, qkv, token);
    std::uint8_t* const to = cache + size(kv_head * tiles + tile) * tiles_.bytes();
    put_key(to, place, qkv);
    put_value(to, place, qkv + shape_.kv_heads * shape_.head_dim);
  }
}

void AttentionMath::turn(int rotation, float* head, std::int64_t token) const {
  if (rotation < 0) {
    return;
  }
  const std::size_t pairs = size(shape_.pairs());
  const std::size_t first_angle = size(rotation * shape_.most_tokens + token) * pairs;
  const float* const cosines = cosines_.data() + first_angle;
  const float* const sines = sines_.data() + first_angle;
  for (std::size_t i = 0; i < pairs; ++i) {
    const float first = head[i];
    const float second = head[i + pairs];
    head[i] = first * cosines[i] - second * sines[i];
    head[i + pairs] = second * cosines[i] + first * sines[i];
  }
}

void AttentionMath::put_query(const float* query, std::size_t place) {
  const float softness = 1 / std::sqrt(static_cast<float>(shape_.head_dim));
  std::int16_t* const steps = steps_.data() + place * size(shape_.head_dim);
  for (std::int64_t block = 0; block < tiles_.blocks(); ++block) {
    const std::int64_t first = block * kKeyBlock;
    const HalfScale scale = in_steps(
        query + first, std::min(kKeyBlock, shape_.head_dim - first), kFactorLevels,
        [&](std::int64_t i, int step) { steps[first + i] = static_cast<std::int16_t>(step); });
    scales_[place * size(tiles_.blocks()) + size(block)] = scale.value * softness;
  }
}

void AttentionMath::put_key(std::uint8_t* tile, std::int64_t place, const float* key) const {
  std::int16_t* const wide = reinterpret_cast<std::int16_t*>(tile);
  for (std::int64_t block = 0; block < tiles_.blocks(); ++block) {
    const std::int64_t first = block * kKeyBlock;
    const HalfScale scale = in_steps(
        key + first, std::min(kKeyBlock, shape_.head_dim - first), tiles_.levels(),
        [&](std::int64_t i, int step) {
          const std::int64_t at = ((first + i) / 2 * kTileTokens + place) * 2 + i % 2;
          if (tiles_.bits == 8) {
            tile[at] = static_cast<std::uint8_t>(step);
          } else {
            wide[at] = static_cast<std::int16_t>(step);
          }
        });
    std::memcpy(tile + tiles_.key_scales_at() + size(2 * (block * kTileTokens + place)),
                &scale.bits, sizeof scale.bits);
  }
}

void AttentionMath::put_value(std::uint8_t* tile, std::int64_t place, const float* value) const {
  std::uint8_t* const to = tile + tiles_.values_at();
  std::int16_t* const wide = reinterpret_cast<std::int16_t*>(to);
  const HalfScale scale =
      in_steps(value, shape_.head_dim, tiles_.levels(), [&](std::int64_t i, int step) {
        const std::int64_t pair = i / kKeyBlock * kTileTokens / 2 + place / 2;
        const std::int64_t at = (pair * kKeyBlock + i % kKeyBlock) * 2 + place % 2;
        if (tiles_.bits == 8) {
          to[at] = static_cast<std::uint8_t>(step);
        } else {
          wide[at] = static_cast<std::int16_t>(step);
        }
      });
  std::memcpy(tile + tiles_.value_scales_at() + size(2 * place), &scale.bits, sizeof scale.bits);
}

AttendedRow AttentionMath::row(const Units& units, std::int64_t range, std::int64_t kv_head,
                               std::int64_t token, std::int64_t head) {
  const std::int64_t number =
      ((range * shape_.kv_heads + kv_head) * units.tokens + token) * shape_.group() + head;
  return {reinterpret_cast<float*>(rows_.data()) + number * AttendedRow::stride(tiles_),
          tiles_.padded_dim()};
}

void AttentionMath::attend_unit(const Units& units, std::int64_t unit, const std::uint8_t* cache,
                                Scratch& scratch) {
  const std::int64_t range = unit % units.ranges;
  const std::int64_t block = unit / units.ranges % units.blocks;
  const std::int64_t kv_head = unit / units.ranges / units.blocks;
  const std::int64_t token = block * units.block;
  const std::int64_t tokens = std::min(units.block, units.tokens - token);
  const std::int64_t group = shape_.group();
  const std::size_t place = size((kv_head * shape_.most_tokens + token) * group);
  const Queries queries{steps_.data() + place * size(shape_.head_dim),
                        scales_.data() + place * size(tiles_.blocks()), tokens * group, group,
                        units.position + token, units.window, shape_.soft_cap};
  AttendedRow first = row(units, range, kv_head, token, 0);
  const std::int64_t stride = AttendedRow::stride(tiles_);
  for (std::int64_t q = 0; q < queries.count; ++q) {
    AttendedRow row{first.data + q * stride, first.padded_dim};
    std::fill_n(row.data, stride, 0.0f);
    row.peak() = -std::numeric_limits<float>::infinity();
  }
  const std::int64_t begin = range * units.range;
  for (std::int64_t segment = begin; segment < begin + units.range; ++segment) {
    const std::int64_t from = segment * kSegmentTokens;
    if (from >= queries.end(queries.count - 1)) {
      return;
    }
    if (from + kSegmentTokens <= queries.begin(0)) {
      continue;
    }
    const std::int64_t tile = kv_head * units.tiles + from / kTileTokens % units.tiles;
    float* const rows = segment == begin ? first.data : scratch.rows.data();
    kernels_.attend(tiles_, cache + size(tile) * tiles_.bytes(), from, queries,
                    scratch.scores.data(), rows);
    for (std::int64_t q = 0; segment > begin && q < queries.count; ++q) {
      fold({first.data + q * stride, first.padded_dim}, {rows + q * stride, first.padded_dim});
    }
  }
}

void AttentionMath::put_together(const Units& units, const std::vector<float>& sinks,
                                 std::int64_t token, float* out) {
  for (std::int64_t head = 0; head < shape_.heads; ++head, out += shape_.head_dim) {
    const std::int64_t kv_head = head / shape_.group();
    const AttendedRow sum = row(units, 0, kv_head, token, head % shape_.group());
    for (std::int64_t range = 1; range < units.ranges; ++range) {
      fold(sum, row(units, range, kv_head, token, head % shape_.group()));
    }
    const float sunk = sinks.empty() ? 0 : std::exp(sinks[size(head)] - sum.peak());
    for (std::int64_t i = 0; i < shape_.head_dim; ++i) {
      out[i] = sum.data[i] / (sum.total() + sunk);
    }
  }
}

}  // namespace flash_llm
