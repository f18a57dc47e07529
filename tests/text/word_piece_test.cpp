#include <gtest/gtest.h>

#include "text/normalisation.h"
#include "text/vocabulary.h"

namespace mt {
namespace {

using test::Ids;
using test::Vocabulary;

enum : int32_t { kPad, kUnknown, kCls, kSep, kUn, kUnable, kA, kAble, kB, kComma, kHan, kSmallI };

Vocabulary small() {
  Vocabulary v("bert");
  v.add("[PAD]", TokenKind::Control);
  v.add("[UNK]", TokenKind::Control);
  v.add("[CLS]", TokenKind::Control);
  v.add("[SEP]", TokenKind::Control);
  for (const char* text : {"▁un", "▁unable", "▁a", "able", "b", "▁,", "▁中", "▁i"}) v.add(text);
  v.file.set_meta("tokenizer.ggml.bos_token_id", {uint32_t{kCls}});
  v.file.set_meta("tokenizer.ggml.seperator_token_id", {uint32_t{kSep}});
  v.file.set_meta("tokenizer.ggml.unknown_token_id", {uint32_t{kUnknown}});
  return v;
}
Ids encode(const std::string& text, bool special = false) {
  return small().open()->encode(text, special);
}

TEST(WordPiece, LongestPieceFirstAndWholeWordsUnknown) {
  EXPECT_EQ(encode("unable"), (Ids{kUnable}));
  EXPECT_EQ(encode("unb"), (Ids{kUn, kB}));
  EXPECT_EQ(encode("unbable"), (Ids{kUn, kB, kAble}));
  EXPECT_EQ(encode("able"), (Ids{kUnknown}));  // only within a word: "▁a" is there, "ble" is not
  EXPECT_EQ(encode("b"), (Ids{kUnknown}));
  EXPECT_EQ(encode("unbq unb"), (Ids{kUnknown, kUn, kB}));
  EXPECT_EQ(encode(""), Ids{});
  EXPECT_EQ(encode(" \t\r\n"), Ids{});
}

TEST(WordPiece, WordsEndAtSpacePunctuationAndIdeographs) {
  EXPECT_EQ(encode("a,,a"), (Ids{kA, kComma, kComma, kA}));
  EXPECT_EQ(encode("a\u00a0a\u3000a\na"), (Ids{kA, kA, kA, kA}));
  EXPECT_EQ(encode("a中中a"), (Ids{kA, kHan, kHan, kA}));
  EXPECT_EQ(encode("a\u3001"), (Ids{kA, kUnknown}));  // an ideographic comma is punctuation
}

TEST(WordPiece, NormalisesAsTheMetadataSay) {
  EXPECT_EQ(encode("UNÄBLE"), (Ids{kUnable}));
  EXPECT_EQ(encode("una\u0308ble"), (Ids{kUnable}));
  EXPECT_EQ(encode("u\u200dn\u00ada\x01"
                   "ble"),
            (Ids{kUnable}));                    // joiner, soft hyphen, control
  EXPECT_EQ(encode("\u0130"), (Ids{kSmallI}));  // capital I with a dot
  Vocabulary v = small();
  v.file.set_meta("tokenizer.ggml.normalizer.strip_accents", {false});
  EXPECT_EQ(v.open()->encode("A Ä", false), (Ids{kA, kUnknown}));
  v.file.set_meta("tokenizer.ggml.normalizer.lowercase", {false});
  EXPECT_EQ(v.open()->encode("a A", false), (Ids{kA, kUnknown}));
  Vocabulary cased = small();  // which keeps its accents unless told otherwise
  cased.file.set_meta("tokenizer.ggml.normalizer.lowercase", {false});
  EXPECT_EQ(cased.open()->encode("a ä", false), (Ids{kA, kUnknown}));
  v.file.set_meta("tokenizer.ggml.normalizer.strip_accents", {true});
  EXPECT_EQ(v.open()->encode("ä Ä", false), (Ids{kA, kUnknown}));
}

TEST(WordPiece, TheMarkOfWordsInATextBeginsNone) {
  EXPECT_EQ(encode("a\u2581a"), (Ids{kUnknown}));
  Vocabulary v = small();
  const int32_t mark = v.add("\u2581");  // as "##\u2581" is written
  EXPECT_EQ(v.open()->encode("a\u2581able \u2581", false), (Ids{kA, mark, kAble, kUnknown}));
}

TEST(WordPiece, BytesThatAreNoUtf8AreLeftOut) {
  EXPECT_EQ(encode("un\xff"
                   "able\xe4\xb8"),
            (Ids{kUnable}));
}

TEST(WordPiece, AHundredCharactersAreAWord) {
  std::string word = "un";
  for (int i = 0; i < 98; ++i) word += "b";
  EXPECT_EQ(encode(word).size(), 99u);
  EXPECT_EQ(encode(word + "b"), (Ids{kUnknown}));
  EXPECT_EQ(encode(word + "b a"), (Ids{kUnknown, kA}));
}

TEST(WordPiece, ControlTokensOnlyWhereAsked) {
  EXPECT_EQ(encode("a[SEP]a", true), (Ids{kA, kSep, kA}));
  EXPECT_EQ(encode("a[SEP]", false), (Ids{kA, kUnknown, kUnknown, kUnknown}));
  Vocabulary v = small();
  v.add("ed", TokenKind::Control);
  EXPECT_EQ(v.open()->encode("aed", false), (Ids{kUnknown}));
}

TEST(WordPiece, ClsAndSepStandAroundAText) {
  const auto t = small().open();
  EXPECT_TRUE(t->adds_bos());
  EXPECT_TRUE(t->adds_eos());
  EXPECT_EQ(t->bos(), kCls);
  EXPECT_EQ(t->eos(), kSep);
  EXPECT_TRUE(t->is_control(kCls));
  EXPECT_EQ(t->decode({kCls, kUn, kB, kA, kSep}), "unb a");
  EXPECT_EQ(t->decode({kCls, kA}, true), "[CLS]a");
  Vocabulary without = small();
  without.file.set_meta("tokenizer.ggml.add_eos_token", {false});
  EXPECT_FALSE(without.open()->adds_eos());
}

TEST(Normalisation, HangulAndDecompositionsOfSeveralParts) {
  namespace n = normalisation;
  const auto codes = [](const n::Few& few) {
    return std::vector<uint32_t>(few.codes.begin(), few.codes.begin() + few.count);
  };
  using Codes = std::vector<uint32_t>;
  EXPECT_EQ(codes(n::without_accents(0xAC01)), (Codes{0x1100, 0x1161, 0x11A8}));
  EXPECT_EQ(codes(n::without_accents(0xD788)), (Codes{0x1112, 0x1175}));
  EXPECT_EQ(codes(n::without_accents(0x1D160)), (Codes{0x1D158, 0x1D165, 0x1D16E}));
  EXPECT_EQ(codes(n::without_accents(0x1EA4)), (Codes{'A'}));  // two marks
  EXPECT_EQ(codes(n::without_accents(0x0301)), Codes{});
  EXPECT_EQ(codes(n::without_accents(0xF900)), (Codes{0x8C48}));
  EXPECT_EQ(codes(n::lower_case(0x130)), (Codes{'i', 0x307}));
  EXPECT_EQ(codes(n::lower_case(0x3A3)), (Codes{0x3C3}));
  EXPECT_EQ(codes(n::lower_case(0x101)), (Codes{0x101}));  // between two capitals
  EXPECT_EQ(codes(n::lower_case(0x10400)), (Codes{0x10428}));
  for (uint32_t code = 0; code < 0x110000; ++code) {  // small letters and bases stay themselves
    for (const uint32_t to : codes(n::without_accents(code))) {
      ASSERT_LE(to, 0x10FFFFu) << code;
      ASSERT_EQ(codes(n::without_accents(to)), Codes{to}) << code;
    }
    for (const uint32_t to : codes(n::lower_case(code)))
      ASSERT_EQ(codes(n::lower_case(to)), Codes{to}) << code;
  }
}

}  // namespace
}  // namespace mt
