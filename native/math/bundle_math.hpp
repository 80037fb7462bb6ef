// What one thread computes on a batch of bundles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "math/batch.hpp"
#include "math/kernels.hpp"
#include "math/neurons.hpp"
#include "math/token_rows.hpp"

namespace flash_llm {

// Owns the scratch memory of one thread, which fits rows of some formats. Few tokens are computed on
// the encoded rows, so that each is the same bytes with others as alone; more on rows unpacked once.
// Results do not depend on how bundles and columns are divided among calls.
class BundleMath {
 public:
  explicit BundleMath(const Kernels& kernels) : kernels_(kernels) {}

  // Makes room for bundles of rows of this format, too; before any are computed on.
  void fit(const RowFormat& format, int bundle_rows);
  std::size_t scratch_bytes() const;
  // Rows that are worked on at a time; the best share of a batch is a multiple.
  static std::int64_t step_rows(const RowFormat& format);

  // h [tokens, places of the batch] = the activations at the places from `first` to before `end`.
  void activate(const Batch& batch, std::int64_t first, std::int64_t end, const Neurons& neurons,
                const PreparedInputs& x, Outputs h);
  // out [dim] += h [places] * the last rows at these places, in order, for one token.
  void add_last_rows(const Batch& batch, std::int64_t first, std::int64_t end, int bundle_rows,
                     const float* h, float* out);
  // out [tokens, dim] += h [tokens, places] * the last rows of all bundles, in order, at these
  // columns.
  void add_last_rows(const Batch& batch, int bundle_rows, Columns columns, Inputs h, Outputs out);
  // out [dim] = a row.
  void decode_row(const RowFormat& format, const std::uint8_t* row, float* out);

 private:
  // Rows from `row` on of each bundle at these places, into rows_.
  void list_rows(const Batch& batch, std::int64_t first, std::int64_t end, int bundle_rows, int row,
                 int rows);
  void list_biases(const Batch& batch, std::int64_t first, std::int64_t end,
                   const Neurons& neurons);
  // To the dot products of so many tokens with rows_.
  void add_row_biases(const RowFormat& format, std::int64_t rows, std::int64_t tokens);
  void combine(std::int64_t count, const Neurons& neurons, Outputs h);

  const Kernels& kernels_;
  std::vector<const std::uint8_t*> rows_;
  std::vector<float> biases_;
  std::vector<float> dots_;          // of some tokens with rows_
  std::vector<float> gates_;         // every other one of them
  std::vector<CacheLine> unpacked_;  // rows_ packed or decoded for several tokens
};

}  // namespace flash_llm
