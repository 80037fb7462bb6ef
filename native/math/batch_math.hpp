// What is computed on a batch of bundles by all threads together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "math/batch.hpp"
#include "math/bundle_math.hpp"
#include "math/thread_pool.hpp"

namespace flash_llm {

// Threads share a batch's bundles. A sum over bundles is made of partial sums over fixed segments
// of the section, each summed in order by whichever thread, and then added up in order; for several
// tokens threads share the columns instead. So results are the same bytes for any number of
// threads, and however a section is divided into batches.
class BatchMath {
 public:
  // `dim`: of rows that are added. Formats are those that fit() is called with first.
  BatchMath(std::int64_t dim, const Kernels& kernels, int threads);

  const char* kernels_name() const { return kernels_.name; }
  std::size_t scratch_bytes() const;
  void fit(const RowFormat& format, int bundle_rows);

  const Kernels& kernels() const { return kernels_; }
  ThreadPool& pool() { return pool_; }
  int most_threads() const { return static_cast<int>(math_.size()); }

  // Ends the other threads.
  void stop() { pool_.stop(); }
  void limit_threads(int most) { pool_.limit(most); }

  // The form of x that activate() takes for rows of this format; valid until the next call.
  PreparedInputs prepare(const RowFormat& format, Inputs x);
  // Room for the activations of a batch; valid until the next call.
  Outputs room(std::int64_t tokens, std::int64_t bundles);
  // Batches should not be larger where their activations need room for so many tokens.
  static std::int64_t most_bundles(std::int64_t tokens);

  // h [tokens, places] = the activations.
  void activate(const Batch& batch, const Neurons& neurons, const PreparedInputs& x, Outputs h);
  // Starts out [tokens, dim] += h * last rows for a section of so many bundles ...
  void begin_sum(std::int64_t bundles, Outputs out);
  // ... of which these come next, with h [tokens, places] ...
  void add_last_rows(const Batch& batch, int bundle_rows, Inputs h);
  // ... until `out` is complete.
  void end_sum();
  // out [dim] = a row.
  void decode_row(const RowFormat& format, const std::uint8_t* row, float* out) {
    math_[0].decode_row(format, row, out);
  }

 private:
  float* segment(std::int64_t index);
  std::int64_t padded_dim() const { return (dim_ + 31) / 32 * 32; }

  const std::int64_t dim_;
  const Kernels& kernels_;
  std::vector<BundleMath> math_;  // one for each thread
  std::vector<CacheLine> prepared_;
  std::vector<float> room_;
  Outputs sum_{};
  std::int64_t segment_bundles_ = 0;
  std::vector<CacheLine> segments_;  // a token's partial sums, [segments, padded dim]
  ThreadPool pool_;
};

}  // namespace flash_llm
