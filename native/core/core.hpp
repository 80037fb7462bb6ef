// The neuron core: sections of a neuron file, the memory they share, and what is computed on them.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/attention.hpp"
#include "core/expert_uses.hpp"
#include "io/counters.hpp"
#include "io/group_file.hpp"
#include "io/reader.hpp"
#include "io/slab.hpp"
#include "math/batch.hpp"
#include "math/batch_math.hpp"
#include "window/group_cache.hpp"
#include "window/group_walk.hpp"
#include "window/read_plan.hpp"
#include "window/sections.hpp"
#include "window/stream_ring.hpp"

namespace flash_llm {

struct CoreOptions {
  std::string path;
  std::int64_t group_bytes;
  std::int64_t groups;
  std::int64_t dim;
  std::int64_t slots;
  std::uint64_t identity;  // of the store, which its groups' checksums hold
  int threads;
  std::string reader;  // auto, io_uring or threads
  int reads_in_flight;
  bool direct_io;
  bool lock_memory;
};

// Calls of several threads take turns; counters can be read at any time. Array arguments have been
// checked by the caller to fit `dim()` and `section()`. Throws ArgumentError, ReadFault, and
// std::runtime_error once closed. What outputs hold after a fault is unspecified.
class NeuronCore {
 public:
  explicit NeuronCore(const CoreOptions& options);
  ~NeuronCore();

  bool direct() const { return direct_; }
  bool locked() const { return locked_; }
  const char* reader_name() const { return reader_name_; }
  std::size_t scratch_bytes() const {
    return math_.scratch_bytes() + batch_.bytes() + experts_.bytes() + group_bytes() +
           (attention_ ? Attention::bytes(attention_->math.shape(), dim_, math_.most_threads())
                       : 0);
  }
  const char* kernels_name() const { return math_.kernels_name(); }
  std::int64_t dim() const { return dim_; }
  const Counters& counters() const { return counters_; }

  // Of rows of `dim` values in this codec: int8, int4, fp16 or mxfp4. Only bundles of one row may have
  // another `dim` than the core. `copies` of it, one for each expert, begin `stride` groups apart.
  // `biased`: see RowFormat; not where rows are added.
  int add_section(std::int64_t first_group, std::int64_t bundles, std::int64_t bundles_per_group,
                  int rows, const std::string& codec, std::int64_t dim, std::int64_t copies = 1,
                  std::int64_t stride = 0, bool biased = false);
  // The section's shape; ArgumentError if there is none, or if it has not so many rows.
  Section section(int index, int least_rows, int most_rows);
  void pin(int section, std::int64_t groups);
  void set_ring(std::int64_t chunk_groups, std::int64_t chunks);
  // The group least likely to be needed yields; a use counts half after `half_life` tokens.
  void set_cache(std::int64_t slots, int half_life);
  void set_stream_order(const std::vector<int>& sections);
  // What scattered reads cost on this device; until then only neighbours are read together.
  void set_read_costs(double request_seconds, double byte_seconds, std::int64_t largest_bytes);
  // Compute with at most so many of the threads from now on; results stay the same bytes.
  void limit_threads(int most);
  void close();

  void rows_dot(int section, Inputs x, Outputs out, bool add);
  void gate_up(int section, Inputs x, Activation activation, Outputs h);
  // Both: h [tokens, bundles of gate_up], then out += h . rows of down. In one call, since threads
  // that have computed the first look for the second a little before they sleep.
  void gate_up_down(int gate_up, int down, Inputs x, Activation activation, Outputs h, Outputs out);
  void bundled(int section, Inputs x, const Neurons& neurons, Outputs out);
  void bundled_sparse(int section, const float* x, const std::uint8_t* active, float* out,
                      const Neurons& neurons);
  // out += the sum of each token's experts' blocks of x, times their weights. Experts lie in the
  // cache; those that are there are computed on while the others arrive, and all are added in the
  // order of their numbers.
  void experts(int gate_up, int down, Inputs x, const Routing& routing, Activation activation,
               Outputs out);
  // Starts reads of groups with wanted bundles; `needed`: the section's next call is for these.
  void prefetch(int section, const std::uint8_t* wanted, bool needed);
  // The same for all groups of these experts.
  void prefetch_experts(int gate_up, int down, const std::int64_t* ids, std::int64_t count,
                        bool needed);
  // Once, before layers are added. Eight bits of a cache hold a key's or value's number, or 16.
  void set_attention(const AttentionShape& shape, float eps);
  AttentionShape attention_shape();
  // Returns the layer's number; the cache [kv heads, tiles] stays the caller's.
  int add_attention(AttentionLayer layer);
  // Norm, attention and norm of tokens from `position` on: the feed-forward block's input, and the
  // residual stream that its output is to be added to, all [tokens, dim].
  void attention(int layer, Inputs hidden, std::int64_t position, Outputs residual,
                 Outputs feed_forward_input);
  // What the layer that attention was called for last multiplied with its o matrix, of its first
  // tokens, [tokens, query width].
  void attended(Outputs out);
  void rms_normed(Inputs x, const float* weights, Outputs out);
  // out += x normed.
  void add_rms_normed(Inputs x, const float* weights, Outputs out);
  void read_rows(int section, const std::int64_t* ids, std::int64_t count, float* out);

 private:
  std::size_t group_bytes() const { return static_cast<std::size_t>(group_bytes_); }
  Section& find(int section);
  PreparedInputs prepare(int section, Inputs x);
  // Over a section that exists.
  GroupWalk walk(int section);
  void begin_sum(int section, Outputs out);
  void check_experts(const Section& gate_up, const Section& down) const;
  // y [tokens, dim] = one expert's block of x, whose groups lie in these slots.
  void expert(const Section& gate_up, const Section& down, const std::int32_t* slots,
              bool waited_for, Inputs x, Activation activation, Outputs y);
  // The caller has its turn.
  void dots(int section, Inputs x, const Neurons& neurons, Outputs out);
  Attention& found_attention();
  void normalise(Inputs x, const float* weights, Outputs out);
  void add_normed(Inputs x, const float* weights, Outputs out);     // over attention_->normed
  void check_open() const;
  void read_pinned(int section, std::int64_t groups, std::int32_t first_slot);

  const std::int64_t dim_;
  const std::int64_t group_bytes_;
  const std::int64_t groups_;
  BatchMath math_;
  Batch batch_;
  ExpertUses experts_;
  Sections sections_;
  Counters counters_;
  ReadCosts read_costs_;
  bool direct_ = false;
  bool locked_ = false;
  const char* reader_name_ = "";

  std::mutex calls_;
  std::unique_ptr<Attention> attention_;
  // Each uses the ones before it; closing goes backwards.
  std::unique_ptr<Slab> slab_;
  std::unique_ptr<GroupFile> file_;
  std::unique_ptr<Reader> reader_;
  std::unique_ptr<GroupCache> cache_;
  std::unique_ptr<StreamRing> ring_;
};

}  // namespace flash_llm
