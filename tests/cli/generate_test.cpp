#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/run_helper.h"
#include "cli/stop_filter.h"
#include "support/folder.h"
#include "support/made_model.h"

// Texts that are written: one, several, drafted ones; where they stop.
namespace mt::test {
namespace {

using nlohmann::json;

TEST(Generate, SameSeedSameText) {
  auto text = [](const std::string& seed) {
    Outcome r = run({"generate", golden("tiny_llama.gguf"), "--raw", "-p", "abc", "-n", "20",
                     "--seed", seed, "--json"});
    EXPECT_EQ(r.code, 0) << r.err;
    return json::parse(r.out)["ids"].dump();
  };
  EXPECT_EQ(text("1"), text("1"));
  EXPECT_NE(text("1"), text("2"));
}

TEST(Generate, StreamsWhatJsonHolds) {
  std::vector<std::string> arguments = {
      "generate", golden("tiny_llama.gguf"), "--raw", "-n", "12", "--temp", "0"};
  Outcome plain = run(arguments, "abc");
  EXPECT_EQ(plain.code, 0) << plain.err;
  EXPECT_EQ(plain.err, "");
  arguments.push_back("--json");
  Outcome with_json = run(arguments, "abc");
  json j = json::parse(with_json.out);
  EXPECT_EQ(j["text"].get<std::string>() + "\n", plain.out) << "a line of its own in a pipe too";
  if (j["finish"] == "length") {
    EXPECT_EQ(j["tokens"], 12);
  }
}

TEST(Generate, TakesTheConventionsOfLlamaCpp) {
  const std::string model = golden("tiny_llama.gguf");
  // -n -1: until the context is full (a random model rarely ends its text).
  Outcome r = run({"generate", "-m", model, "--raw", "-p", "abc", "-n", "-1", "-c", "50", "--temp",
                   "0", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  json j = json::parse(r.out);
  EXPECT_TRUE(j["finish"] == "end" || j["finish"] == "context") << j["finish"];
  if (j["finish"] == "context") {
    EXPECT_EQ(j["prompt_tokens"].get<int>() + j["tokens"].get<int>(), 51) << "the last is not run";
  }
  // -n 0: nothing is drawn.
  r = run({"generate", "-m", model, "--raw", "-p", "abc", "-n", "0", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(json::parse(r.out)["tokens"], 0);
  EXPECT_EQ(run({"generate", "-m", model, "--raw", "-p", "a", "-n", "-2"}).code, 2);
  // --seed -1: another seed each time, and it is told.
  auto seed = [&] {
    return json::parse(run({"generate", "-m", model, "--raw", "-p", "abc", "-n", "1", "--seed",
                            "-1", "--json"})
                           .out)["seed"]
        .get<uint64_t>();
  };
  EXPECT_NE(seed(), seed());
  EXPECT_EQ(run({"inspect", "-m", model}).out, run({"inspect", model}).out);
}

TEST(Generate, FiguresStandBelowTheText) {
  // Both streams in one pipe: what is buffered of the one must not come after the other.
  const std::string command = std::string(MT_BINARY) + " generate " + golden("tiny_llama.gguf") +
                              " --raw -p abc -n 5 --seed 3 --stats 2>&1";
  FILE* both = ::popen(command.c_str(), "r");
  char buffer[512] = {};
  const size_t n = std::fread(buffer, 1, sizeof buffer - 1, both);
  EXPECT_EQ(::pclose(both), 0);
  const std::string shown(buffer, n);
  EXPECT_NE(shown.find("\nmicrotome: prompt "), std::string::npos) << shown;
}

TEST(Generate, DraftsChangeNoText) {
  for (const char* temperature : {"0", "0.5"}) {
    std::vector<std::string> arguments = {"generate",     golden("tiny_qwen3.gguf"),
                                          "--raw",        "-p",
                                          "abcabcabcabc", "-n",
                                          "60",           "--temp",
                                          temperature,    "--stats",
                                          "--json"};
    const Outcome plain = run(arguments);
    ASSERT_EQ(plain.code, 0) << plain.err;
    EXPECT_EQ(plain.err.find("drafted"), std::string::npos) << plain.err;
    arguments.insert(arguments.end(), {"--spec-type", "ngram", "--draft-min", "3"});
    const Outcome drafted = run(arguments);
    ASSERT_EQ(drafted.code, 0) << drafted.err;
    const json a = json::parse(plain.out), b = json::parse(drafted.out);
    for (const char* key : {"text", "ids", "finish"}) EXPECT_EQ(a[key], b[key]);
    EXPECT_FALSE(a.contains("drafts"));
    const json& drafts = b["drafts"];
    EXPECT_EQ(drafts["type"], "ngram");
    EXPECT_GT(drafts["batches"].get<int>(), 0);
    EXPECT_GE(drafts["drafted"], drafts["batches"]);
    EXPECT_LE(drafts["accepted"], drafts["drafted"]);
    EXPECT_NE(drafted.err.find(" drafted tokens kept, in "), std::string::npos) << drafted.err;
    // A stop text in the middle of what was drafted.
    const std::string whole = a["text"];
    std::string stop;
    for (size_t at = whole.size() / 2; at < whole.size() && stop.size() < 2; ++at)
      if (static_cast<unsigned char>(whole[at]) < 0x80)
        stop += whole[at];
      else
        stop.clear();
    if (stop.size() < 2) continue;
    arguments.insert(arguments.end(), {"--stop", stop});
    EXPECT_EQ(json::parse(run(arguments).out)["text"], whole.substr(0, whole.find(stop)));
  }
}

TEST(Generate, SeveralPromptsGiveWhatEachGives) {
  const TemporaryFile file("abc\n\nthe end\r\nabcabcabc\n");
  std::vector<std::string> arguments = {
      "generate", golden("tiny_llama.gguf"), "--raw", "-n", "15", "--seed", "5"};
  auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), arguments.begin(), arguments.end());
    Outcome r = run(more);
    EXPECT_EQ(r.code, 0) << r.err;
    return r.out;
  };
  json alone = json::array();
  for (const char* prompt : {"abc", "the end", "abcabcabc"})
    alone.push_back(json::parse(with({"-p", prompt, "--json"}))["ids"]);
  for (const char* parallel : {"1", "2", "8"}) {
    const json all =
        json::parse(with({"--prompts", file.path(), "--parallel", parallel, "--json"}));
    ASSERT_EQ(all.size(), 3u);
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(all[i]["ids"], alone[i]) << i << " of " << parallel;
  }
  const std::string shown = with({"--prompts", file.path()});
  const size_t first = shown.find("==> 1: abc <==\n"), second = shown.find("==> 3: the end <==\n");
  EXPECT_EQ(first, 0u) << shown;
  EXPECT_LT(second, shown.find("==> 4: abcabcabc <==\n")) << shown;
  // A byte order mark, blank lines and line ends of other systems are no part of a prompt.
  const TemporaryFile other(
      "\xEF\xBB\xBF"
      "abc\r\n  \r\n\t\nthe end");
  const json read = json::parse(with({"--prompts", other.path(), "--json"}));
  ASSERT_EQ(read.size(), 2u);
  EXPECT_EQ(read[0]["prompt"], "abc");
  EXPECT_EQ(read[1]["prompt"], "the end");
  EXPECT_EQ(read[1]["line"], 4);
  const TemporaryFile empty("\n \n");
  EXPECT_EQ(run({"generate", golden("tiny_llama.gguf"), "--prompts", empty.path()}).code, 2);
  EXPECT_EQ(run({"generate", golden("tiny_llama.gguf"), "-p", "a", "--parallel", "2"}).code, 2);
}

// Each text has the context that it would have alone: room for as much again as its own prompt, or
// 4096 tokens, not for what the longest one needs.
TEST(Generate, SeveralPromptsHaveEachItsOwnContext) {
  const TemporaryFolder folder;
  const std::string model = folder / "made.gguf", long_prompt = some_text(200);
  make_model(model, {.d_model = 16, .d_ff = 16, .context_length = 100000});
  const TemporaryFile file("abc\n" + long_prompt + "\nthe end\n");
  auto written = [&](std::vector<std::string> more) {
    std::vector<std::string> words = {"generate", model, "--raw",     "-n", "-1",    "--temp",
                                      "0",        "-q",  "--threads", "1",  "--json"};
    words.insert(words.end(), more.begin(), more.end());
    Outcome r = run(words);
    EXPECT_EQ(r.code, 0) << r.err;
    return json::parse(r.out);
  };
  const json all = written({"--prompts", file.path(), "--parallel", "1"});
  ASSERT_EQ(all.size(), 3u);
  size_t i = 0;
  for (const std::string& prompt : {std::string("abc"), long_prompt, std::string("the end")}) {
    const json alone = written({"-p", prompt});
    EXPECT_EQ(alone["finish"], "context");
    const int64_t n = alone["prompt_tokens"];
    EXPECT_EQ(alone["tokens"], std::max<int64_t>(4096, 2 * n) - n + 1);
    for (const char* key : {"finish", "prompt_tokens", "tokens", "ids"})
      EXPECT_TRUE(all[i][key] == alone[key]) << key << " of " << i;
    ++i;
  }
  EXPECT_GT(all[1]["prompt_tokens"], 2048);
}

TEST(Generate, SeveralPromptsAsJsonSayWhereTheyStand) {
  const std::string model = golden("tiny_llama.gguf");
  const TemporaryFile file("\nabc\n\nthe end\r\nabcabcabc\n");
  const Outcome r = run({"generate", model, "--raw", "-n", "9", "--seed", "5", "--prompts",
                         file.path(), "--json", "--stats"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json all = json::parse(r.out);
  const json alone = json::parse(
      run({"generate", model, "--raw", "-n", "9", "--seed", "5", "-p", "the end", "--json"}).out);
  ASSERT_EQ(all.size(), 3u);
  ASSERT_TRUE(all[0].contains("line"));
  EXPECT_EQ(all[0]["line"], 2);
  EXPECT_EQ(all[1]["line"], 4);
  EXPECT_EQ(all[2]["line"], 5);
  EXPECT_EQ(all[0]["prompt"], "abc");
  EXPECT_EQ(all[1]["prompt"], "the end");
  for (const auto& [key, value] : alone.items()) EXPECT_TRUE(all[1].contains(key)) << key;
  // --stats on standard error: a line each, as without --json, and one of all.
  const std::vector<std::string> shown = lines(r.err);
  ASSERT_EQ(shown.size(), 4u) << r.err;
  EXPECT_NE(shown[3].find("3 texts"), std::string::npos) << r.err;
  int64_t tokens = 0;
  for (const json& text : all) tokens += text["tokens"].get<int64_t>();
  EXPECT_NE(shown[3].find(" " + std::to_string(tokens) + " tokens written"), std::string::npos)
      << r.err;
}

TEST(Generate, APromptThatIsTooLongIsFoundInItsFile) {
  const TemporaryFile file("abc\n\n" + some_text(20) + "\nabc\n");
  const Outcome r = run({"generate", golden("tiny_llama.gguf"), "--raw", "--prompts", file.path(),
                         "-n", "2", "-c", "12"});
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.err.find(file.path() + ": line 3: "), std::string::npos) << r.err;
  EXPECT_NE(r.err.find("the context holds 12"), std::string::npos) << r.err;
}

TEST(Generate, DraftOptionsThatContradictAreRefused) {
  auto said = [](std::vector<std::string> more) {
    more.insert(more.begin(),
                {"generate", golden("tiny_llama.gguf"), "--raw", "-p", "abc", "-n", "2"});
    const Outcome r = run(more);
    EXPECT_EQ(r.code, 2);
    return r.err;
  };
  EXPECT_NE(said({"--spec-type", "ngram", "--draft-max", "2", "--draft-min", "3"})
                .find("--draft-min: expected at most --draft-max, 2, found 3"),
            std::string::npos);
  for (const char* option : {"--draft-max", "--draft-min", "--spec-draft-n-max"}) {
    EXPECT_NE(said({option, "2"}).find("--spec-type ngram"), std::string::npos) << option;
    EXPECT_NE(said({"--spec-type", "none", option, "2"}).find("--spec-type ngram"),
              std::string::npos)
        << option;
  }
  for (const char* least : {"2", "0"})
    EXPECT_EQ(run({"generate", golden("tiny_llama.gguf"), "--raw", "-p", "abc", "-n", "2",
                   "--spec-type", "ngram", "--draft-max", "2", "--draft-min", least})
                  .code,
              0);
}

TEST(Generate, StopTextIsNeverShown) {
  std::vector<std::string> arguments = {
      "generate", golden("tiny_llama.gguf"), "--raw", "-p", "abc", "-n", "40", "--seed", "3",
      "--json"};
  std::string whole = json::parse(run(arguments).out)["text"];
  // A piece of the text over a token's end or two.
  ASSERT_GT(whole.size(), 12u);
  std::string stop;
  for (size_t at = 4; at + 3 < whole.size(); ++at)
    if (static_cast<unsigned char>(whole[at]) < 0x80) {
      size_t end = at;
      while (end < at + 3 && static_cast<unsigned char>(whole[end]) < 0x80) ++end;
      stop = whole.substr(at, end - at);
      break;
    }
  ASSERT_NE(stop, "");
  arguments.insert(arguments.end(), {"--stop", "never in the text", "--stop", stop});
  json j = json::parse(run(arguments).out);
  EXPECT_EQ(j["finish"], "stop");
  EXPECT_EQ(j["text"], whole.substr(0, whole.find(stop)));
}

TEST(StopFilter, HoldsBackWhateverTheSplit) {
  std::string text = "aabaabaaabxyz<|en<|end|>rest";
  for (std::string stop : {"aaab", "<|end|>", "z<", "absent", "rest!"}) {
    std::string expected = text.substr(0, text.find(stop));
    for (size_t step = 1; step < 9; ++step) {
      cli::StopFilter filter({stop, ""});
      std::string shown;
      for (size_t at = 0; at < text.size(); at += step) {
        shown += filter.push(text.substr(at, step));
        EXPECT_TRUE(expected.starts_with(shown));
      }
      shown += filter.flush();
      EXPECT_EQ(shown, expected) << stop << step;
      EXPECT_EQ(filter.stopped(), text.find(stop) != text.npos);
    }
  }
}

}  // namespace
}  // namespace mt::test
