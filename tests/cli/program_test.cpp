#include <gtest/gtest.h>

#include <unistd.h>

#include <cctype>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/progress_draw.h"
#include "cli/progress_line.h"
#include "cli/run_helper.h"

// The program as its users meet it: streams, exit codes, terminals.
namespace mt::test {
namespace {

using nlohmann::json;

const std::vector<std::string> kCommands = {"inspect", "generate", "eval",   "profile", "plan",
                                            "cut",     "compress", "export", "bench"};

TEST(Program, HelpOfEveryCommandHasItsExamples) {
  Outcome all = run({"--help"});
  EXPECT_EQ(all.code, 0);
  for (const auto& command : kCommands) {
    Outcome help = run({command, "--help"});
    EXPECT_EQ(help.code, 0) << command;
    EXPECT_EQ(help.err, "") << command;
    EXPECT_NE(help.out.find("Examples:"), std::string::npos) << command;
    EXPECT_NE(help.out.find("microtome " + command + " "), std::string::npos) << command;
    EXPECT_NE(help.out.find("--json"), std::string::npos) << command;
    EXPECT_NE(all.out.find("microtome " + command + " "), std::string::npos) << command;
  }
}

TEST(Program, HelpFoldsItsLines) {
  for (const auto& command : kCommands) {
    const std::string help = run({command, "--help"}).out;
    std::istringstream lines(help.substr(0, help.find("Examples:")));
    for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100u) << line;
  }
}

TEST(Program, UnknownCommandsAreNamedAndAnsweredWithTheNearest) {
  auto said = [](const std::vector<std::string>& arguments) {
    Outcome r = run(arguments);
    EXPECT_EQ(r.code, 2);
    return r.err;
  };
  const std::string all =
      "ommands are inspect, generate, eval, profile, plan, cut, compress, export, bench";
  for (const auto& [typed, meant] :
       {std::pair{"comprss", "compress"}, {"Plan", "plan"}, {"evla", "eval"}}) {
    for (const auto& line :
         {std::vector<std::string>{typed}, {"--threads", "2", "-q", typed, "x"}}) {
      const std::string text = said(line);
      EXPECT_NE(text.find(std::string("unknown command '") + typed + "'; did you mean '" + meant +
                          "'? C" + all),
                std::string::npos)
          << text;
    }
  }
  const std::string text = said({"model.gguf"});
  EXPECT_NE(text.find("unknown command 'model.gguf'; c" + all), std::string::npos) << text;
  EXPECT_NE(said({}).find("expected a command: inspect, "), std::string::npos);
  EXPECT_EQ(run({"help"}).out, run({"--help"}).out);
  EXPECT_EQ(run({"help", "plan"}).out, run({"plan", "--help"}).out);
}

TEST(Program, UnknownOptionsAreNamedAndAnsweredWithTheNearest) {
  const auto said = [](const std::vector<std::string>& arguments) {
    Outcome r = run(arguments);
    EXPECT_EQ(r.code, 2);
    return r.err;
  };
  const std::string model = golden("tiny_llama.gguf");
  for (const auto& [line, answer] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"generate", model, "-ngl", "99", "-p", "--raw"}, "unknown option '-ngl' (see"},
           {{"generate", model, "--tmep=0"}, "unknown option '--tmep'; did you mean '--temp'?"},
           {{"compress", model, "--refin", "4"}, "'--refin'; did you mean '--refine'?"},
           {{"eval", model, "--wholly-else"}, "unknown option '--wholly-else' (see"},
           {{"generate", model, "-n", "many"}, "many"}}) {
    const std::string text = said(line);
    EXPECT_NE(text.find(answer), std::string::npos) << text;
  }
  EXPECT_EQ(said({"generate", model, "-n", "many"}).find("unknown"), std::string::npos);
}

TEST(Program, VersionIsANumber) {
  Outcome r = run({"--version"});
  EXPECT_EQ(r.code, 0);
  EXPECT_TRUE(r.out.starts_with("microtome ") && isdigit(r.out[10])) << r.out;
}

TEST(Program, BadUsageAndBadFilesExitWith2AndOneLine) {
  TemporaryFile empty(""), noise("GGUF but not really a model of any kind", ".gguf");
  TemporaryFile text(some_text(100));
  std::string model = golden("tiny_llama.gguf");
  std::vector<std::vector<std::string>> wrong = {
      {},
      {"nonsense"},
      {"inspect"},
      {"inspect", "--nonsense", model},
      {"inspect", "no-such-file.gguf"},
      {"inspect", noise.path()},
      {"inspect", "/"},
      {"inspect", model, "--ctx", "0"},
      {"inspect", model, "--threads", "many"},
      {"eval", model},
      {"eval", model, "--text", empty.path()},
      {"eval", model, "--text", "no-such-text"},
      {"eval", model, "--text", text.path(), "--n-ctx", "100000"},
      {"eval", model, "--text", text.path(), "--max-kl", "1"},
      {"eval", model, "--text", text.path(), "--path", "sideways"},
      {"eval", model, "--qa", empty.path()},
      {"eval", model, "--qa", text.path()},
      {"generate", model, "-p", "a", "--top-p", "2"},
      {"generate", model, "--raw", "-p", "abc abc abc", "--ctx", "2"},
      {"generate", model, "-f", "no-such-file"},
      {"generate", model, "-p", ""},
      {"generate", model, "--raw", "-p", ""},
      {"generate", model, "-p", "a", "--seed", "99999999999999999999999"},
      {"eval", model, "--text", text.path(), "--seed", "-1"},
      {"plan", model, "--size", "80kB", "--seed", "0x10"},
      {"plan", model, "--size", "80kB", "--seed", ""},
      {"bench"},
      {"bench", model, "--threads", "0"},
      {"bench", model, "--depth", "-1"},
      {"bench", model, "--prompt", "0", "--decode", "0"},
      {"bench", model, "--runs", "0"},
      {"bench", model, "--against", "peer {tokens}"},
      {"bench", model, "--against", "exit 3", "--prompt", "4", "--decode", "0", "--depth", "0"},
  };
  for (const auto& arguments : wrong) {
    std::string all;
    for (const auto& a : arguments) all += " " + a;
    Outcome r = run(arguments);
    EXPECT_EQ(r.code, 2) << all << r.err;
    EXPECT_EQ(r.out, "") << all;
    EXPECT_TRUE(r.err.starts_with("microtome: ")) << all << r.err;
    EXPECT_EQ(lines(r.err).size(), 1u) << all << r.err;
    // The same as JSON.
    auto with_json = arguments;
    with_json.push_back("--json");
    Outcome j = run(with_json);
    EXPECT_EQ(j.code, 2) << all;
    json document = json::parse(j.out, nullptr, false);
    ASSERT_TRUE(document.is_object()) << all << j.out;
    EXPECT_TRUE(document["error"].is_string()) << all;
    EXPECT_EQ(document["exit_code"], 2) << all;
  }
}

TEST(Program, ErrorsCannotDriveTheTerminal) {
  Outcome r = run({"inspect", "evil\x1b[2J\nname.gguf"});
  EXPECT_EQ(r.code, 2);
  EXPECT_EQ(r.err.find('\x1b'), std::string::npos);
  EXPECT_EQ(lines(r.err).size(), 1u) << r.err;
}

TEST(Program, ReaderThatLeavesIsNoError) {
  std::string command = std::string(MT_BINARY) + " inspect " + golden("tiny_llama.gguf") +
                        " --tensors --metadata 2>&1 >/dev/full";
  FILE* full = ::popen(command.c_str(), "r");
  char buffer[512] = {};
  size_t n = std::fread(buffer, 1, sizeof buffer - 1, full);
  int status = ::pclose(full);
  EXPECT_EQ(WEXITSTATUS(status), 2);
  EXPECT_NE(std::string(buffer, n).find("No space left"), std::string::npos);

  command = "bash -c '" + std::string(MT_BINARY) + " inspect " + golden("tiny_llama.gguf") +
            " --tensors | exec 0<&-; echo ${PIPESTATUS[0]}' 2>&1";
  FILE* gone = ::popen(command.c_str(), "r");
  n = std::fread(buffer, 1, sizeof buffer - 1, gone);
  ::pclose(gone);
  EXPECT_EQ(std::string(buffer, n), "0\n");
}

// At 60 columns every table is there whole: nothing is cut off with an ellipsis.
TEST(Program, TablesReadAt60Columns) {
  TemporaryFile text(some_text(300));
  auto folder = std::filesystem::temp_directory_path() / "mt-cli-60-columns";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  const std::string model = golden("tiny_gemma3.gguf");
  const std::string small = (folder / "small.gguf").string();
  const std::vector<std::string> little = {
      "--windows", "4",    "--proof-windows",         "5", "--n-ctx", "32", "--measured",
      "2",         "--db", (folder / "m.db").string()};
  auto with = [&](std::vector<std::string> words) {
    words.insert(words.end(), little.begin(), little.end());
    return words;
  };
  ASSERT_EQ(run(with({"compress", model, "--bpw", "6", "-o", small})).code, 0);
  const std::vector<std::vector<std::string>> shows = {
      {"inspect", model, "--tensors"},
      {"inspect", small},
      with({"profile", model}),
      with({"plan", model, "--frontier", "5"}),
      {"eval", model, "--text", text.path(), "--n-ctx", "32", "--windows", "6"},
      {"eval", small, "--against", model, "--text", text.path(), "--n-ctx", "32", "--windows",
       "6"}};
  for (auto words : shows) {
    words.push_back("-q");  // no progress between the lines
    Outcome r = run_in_terminal(words, 60);
    EXPECT_EQ(r.code, 0) << words[0] << r.out;
    EXPECT_EQ(r.out.find("…"), std::string::npos) << words[0] << "\n" << r.out;
    for (const std::string& line : lines(r.out)) {
      std::string plain;
      for (size_t i = 0; i < line.size(); ++i)
        if (line[i] == '\x1b')
          i = std::min(line.find_first_of("mK", i), line.size());
        else if (line[i] != '\r')
          plain += line[i];
      EXPECT_LE(cli::columns(plain), 60) << plain;
    }
  }
  std::filesystem::remove_all(folder);
}

TEST(Program, AContextBeyondTheModelsTrainingIsWarnedOf) {
  const std::string model = golden("tiny_llama.gguf");
  const int64_t trained =
      json::parse(run({"inspect", model, "--json"}).out)["sizes"]["context_length"];
  TemporaryFile text(some_text(static_cast<int>(trained)));
  for (int64_t n : {trained, trained + 1}) {
    const std::string n_ctx = std::to_string(n);
    Outcome eval = run({"eval", model, "--text", text.path(), "--n-ctx", n_ctx, "--windows", "1"});
    EXPECT_EQ(eval.code, 0) << eval.err;
    Outcome written = run({"generate", model, "--raw", "-p", "ab", "-n", n_ctx, "-c", n_ctx});
    EXPECT_EQ(written.code, 0) << written.err;
    Outcome little = run({"generate", model, "--raw", "-p", "ab", "-n", "1", "-c", n_ctx});
    EXPECT_EQ(little.code, 0) << little.err;
    for (const Outcome& r : {eval, written, little}) {
      EXPECT_EQ(r.err.find("warning: " + n_ctx + " tokens of context are more than the " +
                           std::to_string(trained)) != std::string::npos,
                n > trained)
          << r.err;
    }
  }
}

TEST(Progress, LineFitsAnyWidth) {
  for (int width = 20; width <= 200; ++width)
    for (const char* label : {"x", "measuring both models", "größere Läufe über viele Fenster"})
      for (uint64_t done : {0, 1, 37, 99, 100}) {
        std::string line = cli::progress_line(label, done, 100, 4000.0, width);
        EXPECT_LT(cli::columns(line), width) << line;
        EXPECT_NE(line.find('%'), std::string::npos) << line;
      }
  EXPECT_EQ(cli::progress_line("reading", 25, 100, 30, 80), "reading   25 %  1:30 left");
  EXPECT_EQ(cli::progress_line("reading", 100, 100, 30, 80), "reading  100 %");
  EXPECT_EQ(cli::progress_line("waiting", 0, 0, 30, 80), "waiting");
}

TEST(Progress, SilentWithoutATerminal) {
  TemporaryFile text(some_text(3000));
  Outcome r = run({"eval", golden("tiny_qwen2.gguf"), "--text", text.path(), "--n-ctx", "64"});
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(r.err, "");
}

TEST(Progress, PlainLinesStay) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const cli::Terminal to_pipe(ends[1]);
  using Draw = cli::ProgressDraw;
  {
    Draw silent(to_pipe, Draw::Style::silent, {}), seldom(to_pipe, Draw::Style::lines),
        always(to_pipe, Draw::Style::lines, {});
    for (Draw* draw : {&silent, &seldom, &always}) {
      draw->update("reading", 0, 4);
      draw->update("reading", 4, 4);
      draw->finish("reading");
    }
  }
  ::close(ends[1]);
  char text[200] = {};
  EXPECT_GT(::read(ends[0], text, sizeof text - 1), 0);
  ::close(ends[0]);
  EXPECT_STREQ(text, "reading    0 %\nreading  100 %\n");
}

// What to do next is told to people, after everything else.
TEST(Program, SaysWhatToDoNextOnATerminal) {
  const auto folder = std::filesystem::temp_directory_path() / "mt-cli-next";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  const std::string db = (folder / "it's.db").string(), plan = (folder / "plan.json").string();
  const std::vector<std::string> words = {"plan",
                                          golden("tiny_llama.gguf"),
                                          "--size",
                                          "80kB",
                                          "-o",
                                          plan,
                                          "--db",
                                          db,
                                          "--windows",
                                          "2",
                                          "--proof-windows",
                                          "2",
                                          "--n-ctx",
                                          "16",
                                          "--measured",
                                          "0",
                                          "--force"};
  Outcome r = run_in_terminal(words, 400);
  EXPECT_EQ(r.code, 0) << r.out;
  const size_t at = r.out.find("\nnext: ");
  ASSERT_NE(at, std::string::npos) << r.out;
  EXPECT_EQ(r.out.substr(at + 1),
            "next: microtome cut " + golden("tiny_llama.gguf") + " " + plan + " --db '" +
                (folder / "it'\\''s.db").string() +
                "' --n-ctx 16 --windows 2 --proof-windows 2 --measured 0 -o small.gguf\r\n");
  for (const char* silent : {"--json", "-q"}) {
    auto with = words;
    with.push_back(silent);
    EXPECT_EQ(run_in_terminal(with, 400).out.find("next: "), std::string::npos) << silent;
  }
  EXPECT_EQ(run(words).err, "");
  std::filesystem::remove_all(folder);
}

// Tasks of more than two seconds show a line on a terminal, and remove it.
TEST(SlowProgress, ShowsOnATerminalAndGoes) {
  TemporaryFile text(some_text(200000));
  for (int width : {20, 80}) {
    Outcome r = run_in_terminal({"eval", golden("tiny_qwen3.gguf"), "--text", text.path(),
                                 "--n-ctx", "128", "--threads", "1"},
                                width);
    EXPECT_EQ(r.code, 0);
    size_t percent = r.out.find(" %");
    ASSERT_NE(percent, std::string::npos) << r.out;
    EXPECT_NE(r.out.find("\r\x1b[K", percent), std::string::npos);
    // Quiet means none.
    Outcome quiet = run_in_terminal({"eval", golden("tiny_qwen3.gguf"), "--text", text.path(),
                                     "--n-ctx", "128", "--threads", "1", "-q"},
                                    width);
    EXPECT_EQ(quiet.out.find("\x1b[K"), std::string::npos);
  }
}

TEST(SlowInterrupt, EndsWith130AndLeavesNoFile) {
  TemporaryFile text(some_text(200000));
  auto folder = std::filesystem::temp_directory_path() / "mt-cli-interrupt";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  bool sent = false;
  Outcome r = run_in_terminal({"eval", golden("tiny_llama.gguf"), "--text", text.path(), "--n-ctx",
                               "128", "--logits", (folder / "out.f32").string()},
                              80, "", [&](int pid, const std::string& so_far) {
                                if (!sent && so_far.find('%') != std::string::npos) {
                                  ::kill(pid, SIGINT);
                                  sent = true;
                                }
                              });
  EXPECT_TRUE(sent);
  EXPECT_EQ(r.code, 130);
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace mt::test
