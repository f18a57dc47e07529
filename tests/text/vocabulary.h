#pragma once
#include <string>
#include <vector>

#include "base/error.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

namespace mt::test {

using Ids = std::vector<int32_t>;

// U+2581 as the spaces that SentencePiece writes so.
inline std::string with_spaces(std::string text) {
  const std::string mark = "\u2581";
  for (size_t at; (at = text.find(mark)) != std::string::npos;) text.replace(at, mark.size(), " ");
  return text;
}

// A vocabulary in the making: each add() is the next id.
struct Vocabulary {
  std::string model;
  std::vector<std::string> texts;
  std::vector<float> scores;
  std::vector<int32_t> types;
  TensorFile file;  // further metadata

  explicit Vocabulary(std::string model_name) : model(std::move(model_name)) {
    file.path = "test.gguf";
  }
  int32_t add(const std::string& text, float score = 0, TokenKind kind = TokenKind::Normal) {
    texts.push_back(text);
    scores.push_back(score);
    types.push_back(static_cast<int32_t>(kind));
    return static_cast<int32_t>(texts.size()) - 1;
  }
  int32_t add(const std::string& text, TokenKind kind) { return add(text, 0, kind); }

  TensorFile tensor_file() const {
    TensorFile whole = file;
    whole.set_meta("tokenizer.ggml.model", {model});
    whole.set_meta("tokenizer.ggml.tokens", {texts});
    whole.set_meta("tokenizer.ggml.scores", {scores});
    whole.set_meta("tokenizer.ggml.token_type", {types});
    return whole;
  }
  std::unique_ptr<Tokenizer> open() const { return Tokenizer::open(tensor_file()); }
  std::string error() const {
    try {
      open();
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
};

}  // namespace mt::test
