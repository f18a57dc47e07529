#include <gtest/gtest.h>

#include "text/vocabulary.h"

namespace mt {
namespace {

using test::Ids;
using test::Vocabulary;

// Llama's order: unknown, BOS, EOS, 256 bytes, pieces.
constexpr int32_t kBytes = 3, kFirst = 259;

Vocabulary llama(const std::vector<std::pair<std::string, float>>& pieces) {
  Vocabulary v("llama");
  v.add("<unk>", TokenKind::Unknown);
  v.add("<s>", TokenKind::Control);
  v.add("</s>", TokenKind::Control);
  for (int b = 0; b < 256; ++b) v.add(fmt::format("<0x{:02X}>", b), TokenKind::Byte);
  for (const auto& [text, score] : pieces) v.add(text, score);
  return v;
}
Ids above(Ids ids) {  // so that the first piece is 0
  for (int32_t& id : ids) id -= kFirst;
  return ids;
}

TEST(SentencePiece, BestScoreFirstThenLeftmost) {
  const auto t = llama({{"▁", -9},
                        {"a", -9},
                        {"b", -9},
                        {"c", -9},
                        {"ab", -2},
                        {"bc", -1},
                        {"▁a", -5},
                        {"aa", -3},
                        {"aaa", -4}})
                     .open();
  EXPECT_EQ(above(t->encode("abc", false)), (Ids{6, 5}));  // "bc" before "ab", then "▁a"
  EXPECT_EQ(above(t->encode("aab", false)), (Ids{6, 4}));  // "ab" before "aa"
  EXPECT_EQ(above(t->encode("aaa", false)), (Ids{0, 8}));  // "aa" on the left, then "aaa"
  EXPECT_EQ(above(t->encode("b b", false)), (Ids{0, 2, 0, 2}));
  EXPECT_EQ(t->encode("", false), Ids{});
  const auto pairs = llama({{"▁", -9}, {"a", -9}, {"aa", -1}}).open();
  EXPECT_EQ(above(pairs->encode("aaa", false)), (Ids{0, 2, 1}));
}

TEST(SentencePiece, UnknownCharactersBecomeBytes) {
  const auto t = llama({{"▁", 0}, {"a", 0}}).open();
  EXPECT_EQ(t->encode("aé", false), (Ids{kFirst, kFirst + 1, kBytes + 0xC3, kBytes + 0xA9}));
  // Ill-formed bytes too: none is lost.
  EXPECT_EQ(t->encode("\xff\xe4", false), (Ids{kFirst, kBytes + 0xFF, kBytes + 0xE4}));
  EXPECT_EQ(t->decode({kFirst + 1, kBytes + 0xC3, kBytes + 0xA9}), "aé");
  // Control and unknown tokens have texts that no ordinary text may become.
  for (const int32_t id : t->encode("<s></s><unk>", false)) EXPECT_GE(id, kBytes);
  Vocabulary v = llama({{"▁", 0}, {"a", 0}, {"b", 0}});
  v.add("ab", TokenKind::Control);
  EXPECT_EQ(above(v.open()->encode("ab", false)), (Ids{0, 1, 2}));
}

TEST(SentencePiece, SpaceBeforeATextAsTheFileSays) {
  Vocabulary v = llama({{"▁", 0}, {"a", 0}, {"▁a", 1}, {"▁▁", 2}});
  const auto with = v.open();
  EXPECT_EQ(above(with->encode("a", false)), (Ids{2}));
  EXPECT_EQ(above(with->encode(" a", false)), (Ids{3, 1}));
  EXPECT_EQ(with->decode({kFirst + 2}), "a");
  EXPECT_EQ(with->decode({1, kFirst + 2, kFirst + 2}), "a a");  // BOS does not count
  // A text after a control token begins anew.
  EXPECT_EQ(with->encode("a</s>a", true), (Ids{kFirst + 2, 2, kFirst + 2}));
  v.file.set_meta("tokenizer.ggml.add_space_prefix", {false});
  const auto without = v.open();
  EXPECT_EQ(above(without->encode("a", false)), (Ids{1}));
  EXPECT_EQ(above(without->encode(" a", false)), (Ids{2}));
  EXPECT_EQ(without->decode({kFirst + 2}), " a");
}

TEST(SentencePiece, PiecesReachAcrossSpacesWhereTheVocabularyDoes) {
  const auto t =
      llama({{"▁", 0}, {"a", 0}, {".", 0}, {"▁a", 1}, {".▁", 2}, {".▁a", 3}, {"▁▁", 1}}).open();
  EXPECT_EQ(above(t->encode("a. a", false)), (Ids{3, 5}));
  EXPECT_EQ(above(t->encode("a a", false)), (Ids{3, 3}));
  EXPECT_EQ(above(t->encode("a   a", false)), (Ids{3, 6, 3}));
}

TEST(SentencePiece, DefaultsOfTheFamily) {
  Vocabulary v = llama({{"a", 0}});
  const auto t = v.open();
  EXPECT_EQ(t->bos(), 1);
  EXPECT_EQ(t->eos(), 2);
  EXPECT_TRUE(t->adds_bos());
  EXPECT_FALSE(t->adds_eos());
  EXPECT_EQ(t->n_vocab(), kFirst + 1);
  v.file.set_meta("tokenizer.ggml.add_bos_token", {false});
  v.file.set_meta("tokenizer.ggml.eos_token_id", {uint32_t{kFirst}});
  const auto other = v.open();
  EXPECT_FALSE(other->adds_bos());
  EXPECT_EQ(other->eos(), kFirst);
  EXPECT_TRUE(other->is_end(kFirst));
}

}  // namespace
}  // namespace mt
