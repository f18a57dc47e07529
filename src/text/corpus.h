#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace mt {

// A text file and its share of the whole: "FILE" or "FILE:0.7".
struct TextSource {
  std::filesystem::path path;
  double weight = 1.0;
};
// A name that exists is taken whole, colon and all. Throws Error for a weight that is not a
// positive finite number.
TextSource parse_text_source(const std::string& argument);

// Token ids in windows of equal length, side by side.
struct TokenWindows {
  std::vector<int32_t> tokens;  // [count, n_ctx]
  int64_t n_ctx = 0;
  bool bos = false;    // the first token of each window is BOS
  std::string sha256;  // of the bytes of the texts, in order

  int64_t count() const { return n_ctx > 0 ? static_cast<int64_t>(tokens.size()) / n_ctx : 0; }
  std::span<const int32_t> window(int64_t i) const {
    return {tokens.data() + i * n_ctx, static_cast<size_t>(n_ctx)};
  }
};

// The whole text is tokenized once, with BOS before it where the model asks for it, and cut into
// windows without overlap; the first token of each is then replaced by BOS, as llama.cpp's
// perplexity does. The bytes are taken as they are (line ends, byte order mark). A last piece
// shorter than n_ctx is left out. `most`: at most so many windows, 0 for all. Throws Error where
// there is not one whole window (how many tokens there are and are needed), and where more than a
// hundredth of the bytes are NUL or no UTF-8 (where the first is).
TokenWindows windows_of_text(const Tokenizer& tokenizer, const std::string& text,
                             const std::string& name, int64_t n_ctx, int64_t most = 0);
// Several files: each is cut by itself; files give windows in proportion to their weights, as many
// as the scarcest allows, mixed evenly. One file gives all it has.
TokenWindows windows_of_files(const Tokenizer& tokenizer, const std::vector<TextSource>& sources,
                              int64_t n_ctx, int64_t most = 0);

// Multiple choice: which of the choices goes on from the query best.
struct Question {
  std::string query;
  std::vector<std::string> choices;
  int64_t gold = 0;
};
struct QuestionSet {
  std::vector<Question> questions;
  std::string sha256;
};
// One JSON object a line (`query`, `choices`, `gold`), or TruthfulQA's array (`question`,
// `mc1_targets`; the choice marked 1 is gold). Throws Error naming file, line or question.
QuestionSet read_questions(const std::filesystem::path& path);

}  // namespace mt
