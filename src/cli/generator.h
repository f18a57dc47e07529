#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "flow/model.h"
#include "run/forward.h"
#include "run/sample.h"
#include "text/tokenizer.h"

namespace mt::cli {

struct Generated {
  std::string text;
  std::vector<int32_t> ids;                // an end token included
  std::string finish;                      // "end", "stop", "length", "context", "interrupted"
  int64_t n_prompt = 0, n_prompt_run = 0;  // tokens; those not already in the cache
  double prompt_seconds = 0, seconds = 0;
};

// A model with one sequence's cache: text goes in, text comes out, and what the cache holds of the
// next prompt is not run again.
class Generator {
 public:
  Generator(const Runtime& rt, const Model& model, const Tokenizer& tokenizer, Path path,
            int64_t n_ctx, const KvTypes& types);
  int64_t n_ctx() const { return cache_.capacity(); }

  // n_predict: tokens at most; negative: until the text ends or the context is full.
  // show: whole UTF-8 characters as they come; returns false to stop. Throws Error where the
  // prompt is empty or does not fit.
  Generated generate(const std::vector<int32_t>& prompt, int64_t n_predict,
                     const SampleOptions& sampling, const std::vector<std::string>& stops,
                     const std::function<bool(std::string_view)>& show);

  // Ids of a text that carries its special tokens as text; BOS first where the model asks for it.
  std::vector<int32_t> encode(const std::string& text) const;

 private:
  // Runs what of `ids` is not in the cache; returns the last token's hidden state [1, d_model].
  MatrixBuffer run(const std::vector<int32_t>& ids, int64_t& n_run);

  const Runtime& rt_;
  const Model& model_;
  const Tokenizer& tokenizer_;
  Path path_;
  KvCache cache_;
  std::vector<int32_t> cached_;
};

}  // namespace mt::cli
