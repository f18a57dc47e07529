#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "flow/model.h"
#include "run/decoder.h"
#include "text/tokenizer.h"

namespace mt::cli {

struct Generated {
  std::string text;
  std::string finish;  // "end", "stop", "length", "context", "interrupted"
  Written written;     // ids: an end token included
};

struct Prompt {
  std::vector<int32_t> ids;
  int64_t n_ctx = 0;  // positions of its text at most; 0: as many as there are
};

// A model with the cache of a few texts: text goes in, text comes out, and what a cache holds of a
// prompt is not run again.
class Generator {
 public:
  Generator(const Runtime& rt, const Model& model, const Tokenizer& tokenizer,
            const DecoderOptions& options);
  int64_t n_ctx() const { return n_ctx_; }

  // n_predict: tokens at most; negative: until the text ends or the context is full.
  // show: whole UTF-8 characters as they come; returns false to stop. Throws Error where the
  // prompt is empty or does not fit.
  Generated generate(const std::vector<int32_t>& prompt, int64_t n_predict,
                     const SampleOptions& sampling, const std::vector<std::string>& stops,
                     const std::function<bool(std::string_view)>& show);

  // Several prompts, as many at once as there are places; each gives what it gives alone. done: in
  // the order of the prompts, as soon as it and those before it are written; returns false to stop.
  void generate_all(const std::vector<Prompt>& prompts, int64_t n_predict,
                    const SampleOptions& sampling, const std::vector<std::string>& stops,
                    const std::function<bool(size_t index, const Generated&)>& done);

 private:
  struct Text;
  void begin(Text& text, const std::vector<int32_t>& prompt, int64_t n_predict,
             const SampleOptions& sampling, int64_t n_ctx = 0);
  Generated end(Text& text);

  const Tokenizer& tokenizer_;
  int64_t n_ctx_;
  Decoder decoder_;
};

// Ids of a text that carries its special tokens as text; BOS first where the model asks for it.
std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const std::string& text);

}  // namespace mt::cli
