#include "text/corpus.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <functional>

#include "base/error.h"

namespace mt {
namespace {

// Each byte of "ab \n" is a token; BOS is id 4.
std::unique_ptr<Tokenizer> letters(bool add_bos) {
  TensorFile file;
  file.path = "test.gguf";
  file.set_meta("tokenizer.ggml.model", {std::string("gpt2")});
  file.set_meta("tokenizer.ggml.pre", {std::string("gpt-2")});
  file.set_meta("tokenizer.ggml.tokens", {std::vector<std::string>{"a", "b", "Ġ", "Ċ", "<bos>"}});
  file.set_meta("tokenizer.ggml.merges", {std::vector<std::string>{}});
  file.set_meta("tokenizer.ggml.bos_token_id", {uint32_t{4}});
  file.set_meta("tokenizer.ggml.add_bos_token", {add_bos});
  return Tokenizer::open(file);
}

std::filesystem::path written(const std::string& name, const std::string& text) {
  const auto path = std::filesystem::path(::testing::TempDir()) / name;
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

std::string message_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(TokenWindows, BosShiftsTheTextOnceAndReplacesEachFirstToken) {
  const auto plain = windows_of_text(*letters(false), "ab ab ab", "t", 3);
  EXPECT_EQ(plain.tokens, (std::vector<int32_t>{0, 1, 2, 0, 1, 2}));
  const auto bos = windows_of_text(*letters(true), "ab ab ab", "t", 3);
  EXPECT_EQ(bos.tokens, (std::vector<int32_t>{4, 0, 1, 4, 0, 1, 4, 0, 1}));
  EXPECT_EQ(bos.count(), 3);
  EXPECT_EQ(bos.window(1)[2], 1);
  EXPECT_EQ(windows_of_text(*letters(true), "ab ab ab", "t", 3, 2).count(), 2);
}

TEST(TokenWindows, ShortTextsSayHowManyTokens) {
  const auto message = message_of([] { windows_of_text(*letters(false), "ab", "t.txt", 512); });
  EXPECT_NE(message.find("t.txt"), std::string::npos) << message;
  EXPECT_NE(message.find("at least 512 tokens"), std::string::npos) << message;
  EXPECT_NE(message.find("found 2"), std::string::npos) << message;
  EXPECT_THROW(windows_of_text(*letters(false), "", "t", 2), Error);
}

TEST(TokenWindows, OtherFilesThanTextAreRefused) {
  auto error = [](const std::string& text) {
    return message_of([&] { windows_of_text(*letters(false), text, "t.txt", 2); });
  };
  EXPECT_NE(error("").find("t.txt: expected text, the file is empty"), std::string::npos);
  const std::string clean(500, 'a');
  for (const std::string& bad : {std::string(1, '\0'), std::string("\xff"), std::string("\xc3(")}) {
    std::string many = clean, few = clean;
    for (int i = 0; i < 6; ++i) many.replace(100 + 20 * i, bad.size(), bad);
    for (int i = 0; i < 5; ++i) few.replace(100 + 20 * i, bad.size(), bad);
    const auto message = error(many);
    EXPECT_NE(message.find("at offset 100"), std::string::npos) << message;
    EXPECT_NE(message.find("6 of 500 bytes"), std::string::npos) << message;
    EXPECT_EQ(error(few), "") << "a stray byte is no other kind of file";
  }
  std::string wide;  // UTF-16
  for (char c : std::string("plain words")) wide += {c, '\0'};
  EXPECT_NE(error(wide).find("at offset 1,"), std::string::npos) << error(wide);
  std::string other_script;
  for (int i = 0; i < 50; ++i) other_script += "\xe3\x81\x82";
  EXPECT_NE(error(other_script).find("too short"), std::string::npos)
      << "no letter of it, but text";
}

TEST(TokenWindows, WeightsDecideTheShares) {
  const auto a = written("a.txt", std::string(400, 'a')),
             b = written("b.txt", std::string(400, 'b'));
  const auto mixed = windows_of_files(*letters(false), {{a, 3.0}, {b, 1.0}}, 4, 40);
  EXPECT_EQ(mixed.count(), 40);
  EXPECT_EQ(std::count(mixed.tokens.begin(), mixed.tokens.end(), 0), 120);
  EXPECT_EQ(std::count(mixed.tokens.begin(), mixed.tokens.end(), 1), 40);
}

TEST(TextSource, WeightsAreParsed) {
  EXPECT_EQ(parse_text_source("f.txt:0.7").weight, 0.7);
  EXPECT_EQ(parse_text_source("f.txt:0.7").path, "f.txt");
  EXPECT_EQ(parse_text_source("f.txt").weight, 1.0);
  for (const char* bad : {"f.txt:x", "f.txt:-1", "f.txt:0", "f.txt:nan", "f.txt:"})
    EXPECT_THROW(parse_text_source(bad), Error) << bad;
}

TEST(Questions, BothFormsAreReadAndErrorsNameTheLine) {
  const auto lines = read_questions(
      written("q.jsonl", "{\"query\":\"q\",\"choices\":[\"x\",\"y\"],\"gold\":1}\r\n\n"));
  ASSERT_EQ(lines.questions.size(), 1u);
  EXPECT_EQ(lines.questions[0].choices[1], "y");
  EXPECT_EQ(lines.questions[0].gold, 1);
  const auto truthful =
      read_questions(written("t.json", "[{\"question\":\"q\",\"mc1_targets\":{\"z\":0,\"a\":1}}]"));
  ASSERT_EQ(truthful.questions.size(), 1u);
  EXPECT_EQ(truthful.questions[0].choices, (std::vector<std::string>{"z", "a"}));
  EXPECT_EQ(truthful.questions[0].gold, 1);
  const std::string good = "{\"query\":\"q\",\"choices\":[\"x\",\"y\"],\"gold\":0}\n";
  for (const char* bad :
       {"{\"query\":1}", "{\"query\":\"q\",\"choices\":[\"x\",\"y\"],\"gold\":2}", "nonsense"}) {
    const auto path = written("bad.jsonl", good + bad);
    const auto message = message_of([&] { read_questions(path); });
    EXPECT_NE(message.find("line 2"), std::string::npos) << bad << ": " << message;
  }
  EXPECT_THROW(read_questions(written("empty.jsonl", "")), Error);

  // Each mistake in this program's words.
  auto error = [&](const std::string& text) {
    return message_of([&] { read_questions(written("bad.jsonl", text)); });
  };
  const std::pair<const char*, const char*> mistakes[] = {
      {"{\"query\": \"q\", \"choi",
       "line 1: expected JSON, found text that ends unfinished after 20 bytes"},
      {"{\"query\": q}", "line 1: expected JSON, found 'q' at line 1, column 11"},
      {"{\"query\": 1e999}", "range"},
      {"{}", "line 1: 'query' is missing"},
      {"{\"query\": 3}", "'query': expected text, found 3"},
      {"{\"query\": \"q\", \"choices\": {}}", "'choices': expected an array"},
      {"{\"query\": \"q\", \"choices\": [1, 2]}", "'choices': expected text, found 1"},
      {"{\"query\": \"q\", \"choices\": [\"a\"], \"gold\": 0}", "at least 2 choices, found 1"},
      {"{\"query\": \"q\", \"choices\": [\"a\", \"\"], \"gold\": 0}", "a choice is empty"},
      {"{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": \"a\"}", "expected an integer"},
      {"3", "line 1: expected an object, found 3"},
      {"[1, 2]", "question 0: expected an object, found 1"},
      {"[{\"question\": \"q\", \"mc1_targets\": {\"z\": 0, \"a\": 0}}]", "found none"},
  };
  for (const auto& [text, part] : mistakes) {
    const auto message = error(text);
    EXPECT_NE(message.find(part), std::string::npos) << text << ": " << message;
    EXPECT_EQ(message.find("exception"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace mt
