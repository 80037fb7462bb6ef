// Which experts a pass needs, and for which of its tokens.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

#include "math/token_rows.hpp"

namespace flash_llm {

// What a router has chosen: ids and weights [tokens, each].
struct Routing {
  const std::int64_t* ids;
  const float* weights;
  std::int64_t tokens;
  std::int64_t each;
};

// Uses by expert, and what is computed for them. Keeps its memory from pass to pass.
class ExpertUses {
 public:
  struct Use {
    std::int64_t expert;
    std::int64_t token;
    float weight;
  };
  // One expert's uses [begin, end), in the order of the tokens.
  struct Turn {
    std::int64_t expert;
    std::size_t begin;
    std::size_t end;
    bool done;
    std::int64_t tokens() const { return static_cast<std::int64_t>(end - begin); }
  };

  std::size_t bytes() const {
    return uses_.capacity() * sizeof(Use) + turns_.capacity() * sizeof(Turn) +
           (inputs_.capacity() + results_.capacity()) * sizeof(float);
  }
  // The experts that are needed, in the order of their numbers.
  std::vector<Turn>& turns() { return turns_; }

  void list(const Routing& routing, std::int64_t dim) {
    uses_.clear();
    turns_.clear();
    for (std::int64_t i = 0; i < routing.tokens * routing.each; ++i) {
      uses_.push_back({routing.ids[i], i / routing.each, routing.weights[i]});
    }
    std::sort(uses_.begin(), uses_.end(), [](const Use& a, const Use& b) {
      return std::tie(a.expert, a.token) < std::tie(b.expert, b.token);
    });
    std::size_t most = 0;
    for (std::size_t i = 0; i < uses_.size(); ++i) {
      if (turns_.empty() || turns_.back().expert != uses_[i].expert) {
        turns_.push_back({uses_[i].expert, i, i, false});
      }
      turns_.back().end = i + 1;
      most = std::max(most, turns_.back().end - turns_.back().begin);
    }
    inputs_.resize(std::max(inputs_.size(), most * static_cast<std::size_t>(dim)));
    // All experts' of a single token, which are added together; else those of one expert.
    const std::size_t rows = routing.tokens == 1 ? uses_.size() : most;
    results_.resize(std::max(results_.size(), rows * static_cast<std::size_t>(dim)));
  }

  // The inputs of an expert's tokens.
  Inputs gathered(const Turn& turn, Inputs x) {
    for (std::size_t i = turn.begin; i < turn.end; ++i) {
      const std::size_t row = (i - turn.begin) * static_cast<std::size_t>(x.stride);
      std::copy_n(x.row(uses_[i].token), x.stride, inputs_.data() + row);
    }
    return {inputs_.data(), turn.tokens(), x.stride};
  }
  // Room for what an expert gives.
  Outputs results(const Turn& turn, Inputs x) {
    const std::size_t row = x.tokens == 1 ? turn.begin * static_cast<std::size_t>(x.stride) : 0;
    return {results_.data() + row, turn.tokens(), x.stride};
  }
  // out += that, times the weights.
  void add(const Turn& turn, Inputs results, Outputs out) const {
    for (std::size_t i = turn.begin; i < turn.end; ++i) {
      const float* const result = results.row(static_cast<std::int64_t>(i - turn.begin));
      float* const sum = out.row(uses_[i].token);
      for (std::int64_t column = 0; column < out.stride; ++column) {
        sum[column] += uses_[i].weight * result[column];
      }
    }
  }

 private:
  std::vector<Use> uses_;
  std::vector<Turn> turns_;
  std::vector<float> inputs_;
  std::vector<float> results_;
};

}  // namespace flash_llm
