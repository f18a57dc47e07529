#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace mt {
namespace {

using Strings = std::vector<std::string>;

TensorFile byte_level(const Strings& tokens, const Strings& merges, const std::string& pre) {
  TensorFile file;
  file.path = "test.gguf";
  file.set_meta("tokenizer.ggml.model", {std::string("gpt2")});
  file.set_meta("tokenizer.ggml.pre", {pre});
  file.set_meta("tokenizer.ggml.tokens", {tokens});
  file.set_meta("tokenizer.ggml.merges", {merges});
  return file;
}

// a b c x 1 2 ' ' '\n' first, so that ids are easy to read
const Strings kLetters = {"a", "b", "c", "x", "1", "2", "Ġ", "Ċ"};

std::string message_of(const TensorFile& file) {
  try {
    Tokenizer::open(file);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(ByteBpe, LowestRankFirstThenLeftmost) {
  Strings tokens = kLetters;
  for (const char* t : {"ab", "bc", "aa", "aaa"}) tokens.push_back(t);  // 8 9 10 11
  const auto t = Tokenizer::open(byte_level(tokens, {"b c", "a b", "a a", "aa a"}, "gpt-2"));
  EXPECT_EQ(t->encode("abc", false), (std::vector<int32_t>{0, 9}));
  EXPECT_EQ(t->encode("aaaaa", false), (std::vector<int32_t>{10, 11}));
  EXPECT_EQ(t->encode("ab", false), (std::vector<int32_t>{8}));
  EXPECT_EQ(t->encode("", false), std::vector<int32_t>{});
}

TEST(ByteBpe, PreTokenizersCutDigitsAsTheirFamiliesDo) {
  Strings tokens = kLetters;
  for (const char* t : {"12", "121", "Ġ1", "ĠĠ"}) tokens.push_back(t);  // 8 9 10 11
  const Strings merges = {"1 2", "12 1", "Ġ 1", "Ġ Ġ"};
  const auto ids = [&](const char* pre, const char* text) {
    return Tokenizer::open(byte_level(tokens, merges, pre))->encode(text, false);
  };
  EXPECT_EQ(ids("gpt-2", "1212"), (std::vector<int32_t>{8, 8}));
  EXPECT_EQ(ids("smollm", "1212"), (std::vector<int32_t>{4, 5, 4, 5}));
  EXPECT_EQ(ids("qwen2", "1212"), (std::vector<int32_t>{4, 5, 4, 5}));
  EXPECT_EQ(ids("llama-bpe", "1212"), (std::vector<int32_t>{9, 5}));
  EXPECT_EQ(ids("default", "1212"), (std::vector<int32_t>{9, 5}));
  // A digit that is cut off first leaves the spaces before it a text of their own.
  EXPECT_EQ(ids("gpt-2", "a  1"), (std::vector<int32_t>{0, 6, 10}));
  EXPECT_EQ(ids("smollm", "a  1"), (std::vector<int32_t>{0, 11, 4}));
}

TEST(ByteBpe, UnknownPreTokenizerIsNamedWithTheKnownOnes) {
  const std::string message = message_of(byte_level(kLetters, {}, "no-such"));
  EXPECT_NE(message.find("'no-such'"), std::string::npos) << message;
  EXPECT_NE(message.find("smollm"), std::string::npos) << message;
}

}  // namespace
}  // namespace mt
