#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace mt {

// What a text that is being written goes on with if it repeats itself: behind the latest of the
// longest earlier pieces that equal its end (Yang et al. 2023, arXiv:2304.04487; as "prompt
// lookup" by Saxena 2023).
struct NgramMatch {
  int64_t length = 0;  // tokens that are equal, at most kLongestMatch; 0: the last one is new
  int64_t next = 0;    // where in the text the continuation begins
};
inline constexpr int64_t kLongestMatch = 16;
// Time: a pass over the text's tokens.
NgramMatch find_ngram(std::span<const int32_t> text);
// The n tokens from match.next on; they may run into themselves, as a text of period one does.
std::vector<int32_t> continuation(std::span<const int32_t> text, const NgramMatch& match,
                                  int64_t n);

// How often the next token was the predicted one, by the length of the match: counted at every
// token, whether it was drafted or not, so that nothing need be tried out to know it. Older tokens
// count less and less.
class Acceptance {
 public:
  Acceptance();
  void count(int64_t length, bool right);
  // Counts the last tokens of a text, as if they had been drawn one by one.
  void learn(std::span<const int32_t> text);
  // Probability that a prediction from a match of this length is right; 0 for length 0.
  double probability(int64_t length) const;

 private:
  std::array<double, kLongestMatch + 1> right_{}, seen_{};
};

// How long batches of n tokens take beside single ones, as measured while they run. Times are for
// decisions only: no result depends on them.
class BatchCost {
 public:
  static constexpr int64_t kMost = 8;  // tokens of a batch
  void add(int64_t n, double seconds);
  // Seconds of a batch of n tokens (1 .. kMost): a median of the last ones, or, before there were
  // any, as few as they may be. 0 before anything was measured.
  double of(int64_t n) const;
  // How many batches ago n tokens were measured; large if never.
  int64_t age(int64_t n) const;
  // Forgets what drafts cost, so that they are tried again.
  void forget_drafts(int64_t n_single);

 private:
  static constexpr int64_t kKept = 7;
  struct Times {
    std::array<double, kKept> seconds{};
    int64_t n = 0, last = 0;
  };
  std::array<Times, kMost + 1> times_{};
  int64_t n_batches_ = 0;
};

}  // namespace mt
