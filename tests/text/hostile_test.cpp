// A model file is not to be trusted: whatever its vocabulary says, opening it either throws Error
// or gives a tokenizer that keeps its promises on every text.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "text/utf8.h"
#include "text/vocabulary.h"

namespace mt {
namespace {

using test::Ids;
using test::Vocabulary;
using test::with_spaces;

struct Random {
  std::mt19937_64 engine;
  explicit Random(uint64_t seed) : engine(seed) {}
  size_t below(size_t n) { return static_cast<size_t>(engine() % n); }
  bool chance(size_t one_in) { return below(one_in) == 0; }

  std::string bytes(size_t most) {
    std::string text(below(most + 1), '\0');
    for (char& c : text) c = static_cast<char>(below(256));
    return text;
  }
  // Letters of the small vocabularies, their marks, names of tokens, some of any character.
  std::string words(size_t most) {
    static const std::vector<std::string> parts = {
        "a", "b", "ab",    "aa",   " ",      "  ",         "\n",     ",", "1",      "é", "中",
        "▁", "Ġ", "[SEP]", "</s>", "<0x41>", "<|im_end|>", "<user>", "😀", "\u0301", "가"};
    std::string text;
    for (size_t n = below(most + 1); n > 0; --n) {
      if (chance(12))
        append_utf8(text, static_cast<uint32_t>(below(0x110000)));  // surrogates too
      else if (chance(12))
        text += bytes(3);
      else
        text += parts[below(parts.size())];
    }
    return text;
  }
};

Vocabulary sound(const std::string& model) {
  Vocabulary v(model);
  v.add("<unk>", TokenKind::Unknown);
  v.add("</s>", TokenKind::Control);
  v.add("[SEP]", TokenKind::Control);
  v.add("<user>", TokenKind::UserDefined);
  v.add("<|im_end|>");
  for (int b = 0; b < 256; b += b < 128 ? 1 : 5)
    v.add(fmt::format("<0x{:02X}>", b), TokenKind::Byte);
  for (const char* text : {"a", "b", "ab", "aa", "aab", "▁", "▁a", "▁aab", "Ġ",  "Ġa",
                           "Ċ", "1", ",",  "▁,", "Ã",   "©", "é",  "▁é",   "中", "▁中"})
    v.add(text, -static_cast<float>(v.texts.size()));
  v.file.set_meta("tokenizer.ggml.eos_token_id", {uint32_t{1}});
  v.file.set_meta("tokenizer.ggml.merges",
                  {std::vector<std::string>{"a b", "a a", "a ab", "Ġ a", "Ã ©", "Ġ Ġ"}});
  return v;
}

void break_token(Vocabulary& v, Random& random) {
  const size_t i = random.below(v.texts.size());
  switch (random.below(7)) {
    case 0:
      v.texts[i] = random.bytes(20);
      break;
    case 1:
      v.texts[i] = random.words(8);
      break;
    case 2:
      v.texts[i] = v.texts[random.below(v.texts.size())];
      break;
    case 3:
      v.types[i] = static_cast<int32_t>(random.below(9)) - 1;
      break;
    case 4:
      v.texts[i] = std::string(random.below(3000), 'a');
      break;
    case 5: {
      constexpr float kScores[] = {NAN, INFINITY, -INFINITY, 0, 1e38f, -1e-45f};
      v.scores[i] = kScores[random.below(std::size(kScores))];
      break;
    }
    default:
      v.texts[i].clear();
  }
}

MetaValue some_value(Random& random, size_t n_tokens) {
  switch (random.below(7)) {
    case 0:
      return {static_cast<uint32_t>(random.below(n_tokens + 2))};
    case 1:
      return {static_cast<int64_t>(random.engine())};
    case 2:
      return {random.bytes(5)};
    case 3:
      return {std::numeric_limits<float>::quiet_NaN()};
    case 4:
      return {random.chance(2)};
    case 5:
      return {std::vector<std::string>{random.words(3), random.bytes(4)}};
    default:
      return {static_cast<int32_t>(random.below(n_tokens + 2)) - 1};
  }
}

void break_metadata(Vocabulary& v, Random& random) {
  static const char* const keys[] = {
      "bos_token_id",        "eos_token_id", "unknown_token_id", "seperator_token_id",
      "cls_token_id",        "eot_token_id", "add_bos_token",    "add_eos_token",
      "add_space_prefix",    "pre",          "merges",           "fim_pad_token_id",
      "normalizer.lowercase"};
  const std::string key = "tokenizer.ggml." + std::string(keys[random.below(std::size(keys))]);
  v.file.set_meta(key, some_value(random, v.texts.size()));
}

void break_merges(Vocabulary& v, Random& random) {
  std::vector<std::string> merges;
  for (size_t n = random.below(30); n > 0; --n) {
    const auto part = [&] {
      return random.chance(4) ? random.words(3) : v.texts[random.below(v.texts.size())];
    };
    merges.push_back(random.chance(40) ? random.bytes(6) : part() + " " + part());
  }
  v.file.set_meta("tokenizer.ggml.merges", {merges});
}

void expect_sound(const Tokenizer& t, const std::string& text) {
  for (const bool special : {false, true}) {
    const Ids ids = t.encode(text, special);
    for (const int32_t id : ids) {
      ASSERT_GE(id, 0);
      ASSERT_LT(id, t.n_vocab());
    }
    Utf8Stream stream;
    std::string whole = stream.push(t.decode(ids, special)) + stream.flush();
    for (size_t at = 0; at < whole.size();) {
      const Utf8Char c = utf8_char(whole, at);
      ASSERT_TRUE(c.valid);
      at += c.length;
    }
  }
}

class HostileVocabulary : public testing::TestWithParam<const char*> {};

TEST_P(HostileVocabulary, ThrowsErrorOrWorks) {
  int opened = 0, refused = 0;
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    Random random(seed);
    Vocabulary v = sound(GetParam());
    for (size_t n = random.below(12); n > 0; --n) break_token(v, random);
    if (random.chance(2)) break_metadata(v, random);
    if (random.chance(4)) break_merges(v, random);
    if (random.chance(30)) v.texts.resize(random.below(v.texts.size()));
    if (random.chance(30)) v.scores.resize(random.below(v.texts.size() + 1));
    if (random.chance(8)) {  // a short vocabulary, below the ids that families take for granted
      const size_t n = 1 + random.below(v.texts.size());
      v.texts.resize(n);
      v.scores.resize(n);
      v.types.resize(n);
    }
    std::unique_ptr<Tokenizer> t;
    try {
      t = v.open();
    } catch (const Error&) {
      ++refused;
      continue;
    }
    ++opened;
    for (const int32_t id : {t->bos(), t->eos()}) {
      ASSERT_GE(id, -1) << seed;
      ASSERT_LT(id, t->n_vocab()) << seed;
    }
    ASSERT_TRUE(!t->adds_bos() || t->bos() >= 0) << seed;
    ASSERT_TRUE(!t->adds_eos() || t->eos() >= 0) << seed;
    for (int32_t id = -1; id <= t->n_vocab(); ++id) {
      t->piece(id, false, true);
      t->piece(id, true);
      ASSERT_FALSE(t->is_end(id) && (id < 0 || id >= t->n_vocab())) << seed;
    }
    for (const std::string& text : {random.words(60), random.bytes(100), std::string(500, 'a')}) {
      expect_sound(*t, text);
      ASSERT_FALSE(HasFatalFailure()) << GetParam() << ", seed " << seed;
    }
  }
  EXPECT_GT(opened, 800);
  EXPECT_GT(refused, 100);
}

// Nothing is lost where every byte has a token, whatever the bytes are.
TEST(HostileText, RandomBytesComeBack) {
  Vocabulary bytes("llama");
  bytes.add("<unk>", TokenKind::Unknown);
  for (int b = 0; b < 256; ++b) bytes.add(fmt::format("<0x{:02X}>", b), TokenKind::Byte);
  for (const char* text : {"▁", "▁a", "ab", "é", "中", "▁中"}) bytes.add(text);
  bytes.file.set_meta("tokenizer.ggml.bos_token_id", {uint32_t{0}});
  bytes.file.set_meta("tokenizer.ggml.eos_token_id", {uint32_t{0}});
  bytes.file.set_meta("tokenizer.ggml.add_space_prefix", {false});
  Vocabulary level("gpt2");
  for (uint32_t b = 0, next = 0x100; b < 256; ++b) {  // GPT-2's names of bytes
    const bool printable = (b > 32 && b < 127) || (b > 0xA0 && b != 0xAD);
    std::string text;
    append_utf8(text, printable ? b : next++);
    level.add(text);
  }
  level.add("Ġa");
  level.file.set_meta("tokenizer.ggml.merges", {std::vector<std::string>{"Ġ a"}});
  for (const Vocabulary* v : {&bytes, &level}) {
    const auto t = v->open();
    for (uint64_t seed = 0; seed < 500; ++seed) {
      Random random(seed);
      const std::string text = seed % 2 ? random.bytes(200) : random.words(60);
      const std::string decoded = t->decode(t->encode(text, false), true);
      if (v == &bytes)  // SentencePiece cannot tell U+2581 from a space
        ASSERT_EQ(with_spaces(decoded), with_spaces(text)) << v->model << ", seed " << seed;
      else
        ASSERT_EQ(decoded, text) << v->model << ", seed " << seed;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, HostileVocabulary, testing::Values("gpt2", "llama", "bert"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace mt
