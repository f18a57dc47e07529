#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "run/forward.h"

namespace mt {

enum class Phase { prompt, decode };

// So many tokens behind `depth` positions that the cache already holds: in one batch (prompt,
// logits of the last token) or one by one (decode, logits of each).
struct SpeedTask {
  Phase phase = Phase::prompt;
  int64_t tokens = 0;
  int64_t depth = 0;
};

// What a token costs whatever the program: the bounds that memory and multiplying units set.
struct TokenCost {
  int64_t weight_bytes = 0;         // every weight once; of the embedding one row
  int64_t kv_bytes_a_position = 0;  // keys and values of one position, all layers
  int64_t weight_products = 0;      // multiply-adds with weights, the head left out
  int64_t head_products = 0;
  int64_t attention_products = 0;  // multiply-adds with one cached position
};
TokenCost token_cost(const Model& model, const KvTypes& types);

// A model with one sequence's cache whose speed is measured again and again.
class SpeedBench {
 public:
  // Throws Error where the cache of `capacity` positions is too large or does not fit the model.
  SpeedBench(const Model& model, Path path, int64_t capacity, const KvTypes& types);
  // Seconds of one run. What the cache lacks of the depth is run first, not counted. after_step:
  // called with the number of tokens that went through the model together; may be empty.
  double run(const Runtime& rt, const SpeedTask& task,
             const std::function<void(int64_t tokens)>& after_step = {});

 private:
  // The hidden states of the next n tokens.
  MatrixBuffer advance(const Runtime& rt, int64_t n);
  const Model& model_;
  Path path_;
  KvCache cache_;
  std::vector<int32_t> tokens_;
};

struct Spread {
  double median = 0, low = 0, high = 0;
};
// Of at least one value.
Spread spread_of(std::vector<double> values);

}  // namespace mt
