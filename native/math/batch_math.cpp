#include "math/batch_math.hpp"

#include <algorithm>

namespace flash_llm {
namespace {

// What a thread should take at a time of a batch: no more than half of a streamed chunk, large beside
// taking it, beside what kernels fetch ahead and beside the cache line of results at its end, which are
// another thread's; of small batches so little that all threads are done at about the same time.
constexpr std::int64_t kMostUnitBytes = 256 * 1024;
constexpr std::int64_t kUnitsOfThread = 4;
constexpr std::int64_t kMostBundles = 8192;
// Of a section: enough for the threads of a small computer, few to add up.
constexpr std::int64_t kSegments = 16;
constexpr std::int64_t kLeastSegment = 64;  // bundles
constexpr std::int64_t kMostActivations = 64 * 1024;

}  // namespace

BatchMath::BatchMath(std::int64_t dim, const Kernels& kernels, int threads)
    : dim_(dim),
      kernels_(kernels),
      math_(static_cast<std::size_t>(threads), BundleMath(kernels)),
      segments_(cache_lines(static_cast<std::size_t>(kSegments * padded_dim()) * sizeof(float))),
      pool_(threads) {}

void BatchMath::fit(const RowFormat& format, int bundle_rows) {
  for (BundleMath& math : math_) {
    math.fit(format, bundle_rows);
  }
}

std::size_t BatchMath::scratch_bytes() const {
  std::size_t bytes = (prepared_.capacity() + segments_.capacity()) * sizeof(CacheLine) +
                      room_.capacity() * sizeof(float);
  for (const BundleMath& math : math_) {
    bytes += math.scratch_bytes();
  }
  return bytes;
}

PreparedInputs BatchMath::prepare(const RowFormat& format, Inputs x) {
  const bool few = x.tokens <= kTokensAlone;
  const std::int64_t parts = few ? x.tokens : (x.tokens + kDotTokens - 1) / kDotTokens;
  const std::size_t bytes = few ? kernels_.prepared_bytes(format) : kernels_.tile_bytes(format);
  prepared_.resize(
      std::max(prepared_.size(), cache_lines(bytes * static_cast<std::size_t>(parts))));
  std::uint8_t* const data = prepared_.data()->bytes;
  if (few) {
    for (std::int64_t token = 0; token < x.tokens; ++token) {
      kernels_.prepare(format, x.row(token), data + static_cast<std::size_t>(token) * bytes);
    }
  } else {
    pool_.share(parts, [&](std::int64_t tile, int) {
      const std::int64_t token = tile * kDotTokens;
      kernels_.prepare_tile(format, x.row(token), x.stride, std::min(kDotTokens, x.tokens - token),
                            data + static_cast<std::size_t>(tile) * bytes);
    });
  }
  return {data, x.tokens, bytes};
}

Outputs BatchMath::room(std::int64_t tokens, std::int64_t bundles) {
  room_.resize(std::max(room_.size(), static_cast<std::size_t>(tokens * bundles)));
  return {room_.data(), tokens, bundles};
}

std::int64_t BatchMath::most_bundles(std::int64_t tokens) {
  return std::clamp<std::int64_t>(kMostActivations / tokens, 1, kMostBundles);
}

void BatchMath::activate(const Batch& batch, const Neurons& neurons, const PreparedInputs& x,
                         Outputs h) {
  const std::int64_t step_rows = BundleMath::step_rows(batch.format);
  const std::int64_t step = step_rows / neurons.rows();
  const std::int64_t step_bytes =
      step_rows * static_cast<std::int64_t>(batch.format.row_bytes());
  const std::int64_t all_steps = (batch.size() + step - 1) / step;
  const std::int64_t steps =
      std::clamp<std::int64_t>(all_steps / (kUnitsOfThread * pool_.threads()), 1,
                               std::max<std::int64_t>(1, kMostUnitBytes / step_bytes));
  const std::int64_t each = step * steps;
  pool_.share((batch.size() + each - 1) / each, [&](std::int64_t unit, int thread) {
    math_[static_cast<std::size_t>(thread)].activate(
        batch, unit * each, std::min(batch.size(), (unit + 1) * each), neurons, x, h);
  }, x.tokens == 1 && batch.waited_for);
}

void BatchMath::begin_sum(std::int64_t bundles, Outputs out) {
  sum_ = out;
  if (out.tokens == 1) {
    segment_bundles_ = std::max(kLeastSegment, (bundles + kSegments - 1) / kSegments);
    std::fill_n(segment(0), kSegments * padded_dim(), 0.0f);
  }
}

void BatchMath::add_last_rows(const Batch& batch, int bundle_rows, Inputs h) {
  if (h.tokens > 1) {
    const std::int64_t blocks = batch.format.blocks();
    const std::int64_t units = std::min<std::int64_t>(blocks, pool_.threads());
    pool_.share(units, [&](std::int64_t unit, int thread) {
      const Columns columns{blocks * unit / units, blocks * (unit + 1) / units};
      math_[static_cast<std::size_t>(thread)].add_last_rows(batch, bundle_rows, columns, h, sum_);
    });
    return;
  }
  const std::int64_t first = batch.number_at(0) / segment_bundles_;
  const std::int64_t last = batch.number_at(batch.size() - 1) / segment_bundles_;
  pool_.share(last - first + 1, [&](std::int64_t unit, int thread) {
    const std::int64_t number = (first + unit) * segment_bundles_;
    math_[static_cast<std::size_t>(thread)].add_last_rows(
        batch, batch.place_of(number), batch.place_of(number + segment_bundles_), bundle_rows,
        h.data, segment(first + unit));
  }, batch.waited_for);
}

void BatchMath::end_sum() {
  for (std::int64_t s = 0; sum_.tokens == 1 && s < kSegments; ++s) {
    const float* const part = segment(s);
    for (std::int64_t i = 0; i < dim_; ++i) {
      sum_.data[i] += part[i];
    }
  }
}

float* BatchMath::segment(std::int64_t index) {
  return reinterpret_cast<float*>(segments_.data()) + index * padded_dim();
}

}  // namespace flash_llm
