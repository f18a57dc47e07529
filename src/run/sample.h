#pragma once
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

namespace mt {

// How the next token is drawn. Steps run in this order, as in llama.cpp's default chain:
// repetition penalty, top-k, top-p, min-p, temperature, draw. Each works on what the one before
// left; probabilities of top-p and min-p are those at temperature 1.
struct SampleOptions {
  double temperature = 0.8;   // 0 or less: the most likely token after the penalty
  int64_t top_k = 40;         // 0 or less: all
  double top_p = 0.95;        // the fewest tokens that hold this share; 1: all
  double min_p = 0.05;        // at least this share of the largest probability; 0: all
  double repeat_penalty = 1;  // logits of recent tokens: divided where > 0, else multiplied; 1: off
  int64_t repeat_last = 64;   // how many tokens are recent; negative: all
  uint64_t seed = 1;
};

// One token with its logit, or, from candidates(), its probability.
struct Candidate {
  int32_t id;
  double value;
};

// What is left to draw from, most likely first (equal ones by id), with probabilities that sum
// to 1. recent: the tokens the penalty applies to. logits: [n_vocab]; -inf and NaN never win.
std::vector<Candidate> candidates(std::span<const float> logits, std::span<const int32_t> recent,
                                  const SampleOptions& options);

// Draws token after token. The same seed, logits and tokens give the same draws on every machine.
class Sampler {
 public:
  explicit Sampler(const SampleOptions& options) : options_(options) {}
  // A token that is part of the text (prompt or drawn): the penalty sees it.
  void accept(int32_t id);
  // logits: [n_vocab], not empty. Does not accept the token by itself.
  int32_t draw(std::span<const float> logits);

 private:
  SampleOptions options_;
  std::deque<int32_t> recent_;
  uint64_t n_drawn_ = 0;
};

}  // namespace mt
