#include <gtest/gtest.h>

#include "text/vocabulary.h"

namespace mt {
namespace {

using test::Ids;
using test::Vocabulary;

// What is found, with the text between as its first byte.
std::string split(const Vocabulary& v, const std::string& text, bool control) {
  const Vocab vocab(v.tensor_file(), v.model);
  const SpecialTokens special(vocab);
  std::string out;
  for (const auto& f : special.split(text, control))
    out += f.id >= 0 ? fmt::format("[{}]", f.id) : std::string(f.text);
  return out;
}

TEST(SpecialTokens, LongerOnesFirstWhereTheyOverlap) {
  Vocabulary v("llama");
  for (const char* text : {"<a>", "<a><b>", "<b>x", "x<a", "aa"})
    v.add(text, TokenKind::UserDefined);
  EXPECT_EQ(split(v, "1<a>2", false), "1[0]2");
  EXPECT_EQ(split(v, "<a><b>x", false), "[1]x");
  EXPECT_EQ(split(v, "x<a><b>", false), "x[1]");  // six bytes before four
  EXPECT_EQ(split(v, "<b>x<a>", false), "[2][0]");
  EXPECT_EQ(split(v, "aaa", false), "[4]a");  // equal ones from the left
  EXPECT_EQ(split(v, "aaaa", false), "[4][4]");
  EXPECT_EQ(split(v, "<a", false), "<a");
  EXPECT_EQ(split(v, "", false), "");
}

TEST(SpecialTokens, ControlTokensOnlyWhereAsked) {
  Vocabulary v("llama");
  v.add("<unk>", TokenKind::Unknown);
  v.add("<s>", TokenKind::Control);
  v.add("<user>", TokenKind::UserDefined);
  v.add("<normal>");
  const std::string text = "<unk><s><user><normal>";
  EXPECT_EQ(split(v, text, false), "<unk><s>[2]<normal>");
  EXPECT_EQ(split(v, text, true), "[0][1][2]<normal>");
}

TEST(SpecialTokens, LongRunsAreCutAsShortOnesAre) {
  Vocabulary v("llama");
  v.add("x");
  for (size_t n = 1; n <= 31; ++n) v.add(std::string(n, '\n'), TokenKind::UserDefined);
  const Vocab vocab(v.tensor_file(), v.model);
  const SpecialTokens special(vocab);
  const std::string text = std::string(31 * 3000 + 7, '\n') + "x\n";
  const auto fragments = special.split(text, false);
  ASSERT_EQ(fragments.size(), 3003u);
  for (size_t i = 0; i < 3000; ++i) ASSERT_EQ(fragments[i].id, 31) << i;
  EXPECT_EQ(fragments[3000].id, 7);
  EXPECT_EQ(fragments[3001].text, "x");
  EXPECT_EQ(fragments[3002].id, 1);
}

TEST(SpecialTokens, PhiSwallowsWhiteSpaceBehindThem) {
  Vocabulary v("llama");
  v.add("<unk>", TokenKind::Unknown);
  v.add("<|user|>", TokenKind::Control);
  EXPECT_EQ(split(v, "<|user|> \n a", true), "[1] \n a");
  v.file.set_meta("general.name", {std::string("Phi-3 mini")});
  EXPECT_EQ(split(v, "<|user|> \n a", true), "[1]a");
}

TEST(SpecialTokens, EndsByIdAndByText) {
  Vocabulary v("llama");
  for (const char* text : {"<unk>", "<s>", "</s>", "a", "<|im_end|>", "<end_of_turn>", "b", "c"})
    v.add(text);
  v.file.set_meta("tokenizer.ggml.eot_token_id", {uint32_t{6}});
  const auto t = v.open();
  std::string ends;
  for (int32_t id = 0; id < t->n_vocab(); ++id) ends += t->is_end(id) ? '1' : '0';
  EXPECT_EQ(ends, "00101110");
  // What ends a text is a control token whatever the file calls it.
  EXPECT_TRUE(t->is_control(4));
  EXPECT_FALSE(t->is_control(3));
  for (const int32_t id : {-1, 8, INT32_MAX, INT32_MIN}) {
    EXPECT_FALSE(t->is_end(id));
    EXPECT_FALSE(t->is_control(id));
    EXPECT_EQ(t->piece(id, true), "");
  }
}

TEST(SpecialTokens, HarmonysEndClosesAChannelOnly) {
  Vocabulary v("llama");
  for (const char* text : {"<unk>", "<s>", "</s>", "<|end|>", "<|return|>"}) v.add(text);
  EXPECT_TRUE(v.open()->is_end(3));
  v.add("<|call|>");
  EXPECT_FALSE(v.open()->is_end(3));
  EXPECT_TRUE(v.open()->is_end(4));
}

TEST(Vocab, MessagesNameKeyExpectedAndFound) {
  Vocabulary v("llama");
  EXPECT_NE(v.error().find("tokenizer.ggml.tokens"), std::string::npos) << v.error();
  v.add("a");
  v.add("b");
  EXPECT_EQ(v.error(), "");
  v.file.set_meta("tokenizer.ggml.bos_token_id", {uint32_t{2}});
  EXPECT_NE(v.error().find("'tokenizer.ggml.bos_token_id': expected an id below 2, found 2"),
            std::string::npos)
      << v.error();
  v.file.set_meta("tokenizer.ggml.bos_token_id", {uint32_t{1}});
  v.scores.pop_back();
  EXPECT_NE(v.error().find("'tokenizer.ggml.scores': expected 2 values"), std::string::npos)
      << v.error();
}

TEST(Utf8Stream, WholeCharactersHoweverTheBytesArrive) {
  const std::string text = "aé中😀b";
  for (size_t size = 1; size <= text.size(); ++size) {
    Utf8Stream stream;
    std::string whole;
    for (size_t at = 0; at < text.size(); at += size) {
      const std::string part = stream.push(text.substr(at, size));
      EXPECT_EQ(part.find("\ufffd"), std::string::npos) << size;
      // Each push ends with a whole character.
      whole += part;
      EXPECT_TRUE(whole == text || (static_cast<uint8_t>(text[whole.size()]) & 0xC0u) != 0x80u);
      EXPECT_LT(std::min(at + size, text.size()) - whole.size(), 4u);
    }
    EXPECT_EQ(whole + stream.flush(), text) << size;
  }
}

TEST(Utf8Stream, IllFormedBytesAreReplaced) {
  const auto streamed = [](const std::string& text) {
    Utf8Stream stream;
    std::string whole;
    for (const char c : text) whole += stream.push(std::string(1, c));
    return whole + stream.flush();
  };
  EXPECT_EQ(streamed("a\xff"
                     "b"),
            "a\ufffdb");
  EXPECT_EQ(streamed("\xe4\xb8"), "\ufffd");
  EXPECT_EQ(streamed("\xe4"
                     "a"),
            "\ufffda");
  EXPECT_EQ(streamed("\xc0\xaf"), "\ufffd\ufffd");  // overlong
  EXPECT_EQ(streamed("\x80"), "\ufffd");
  EXPECT_EQ(streamed(""), "");
}

}  // namespace
}  // namespace mt
