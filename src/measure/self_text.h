#pragma once
#include <cstdint>
#include <vector>

#include "run/forward.h"
#include "text/tokenizer.h"

namespace mt {

struct SelfTextSettings {
  uint64_t seed = 1;
  int64_t n_tokens = 256;  // a sequence, BOS included
};

// Text that the model writes itself, for calibration where the user gives none: `n` sequences,
// numbers first .. first+n-1, sampled side by side at temperature 1. Each starts with BOS where
// the model asks for one, else with a random ordinary token (after LLM-QAT, Liu et al. 2023). A
// sequence that ends goes on with a random token.
std::vector<std::vector<int32_t>> sample_self_text(const Runtime& rt, const Model& model,
                                                   const Tokenizer& tokenizer,
                                                   const SelfTextSettings& settings, int64_t first,
                                                   int64_t n);

// Draws an index from softmax(logits) by the uniform u in [0,1). Leaves exp(logits - max) in
// logits and their sum in total.
int64_t draw(const Kernels& k, std::span<float> logits, double u, double& total);

}  // namespace mt
