#include <gtest/gtest.h>

#include <unistd.h>

#include <cctype>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/progress_draw.h"
#include "cli/progress_line.h"
#include "cli/run_helper.h"
#include "cli/stop_filter.h"

// The program as its users meet it: streams, exit codes, terminals.
namespace mt::test {
namespace {

using nlohmann::json;

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) out.push_back(line);
  return out;
}

// Text that the tiny models' tokenizers take apart into some hundred tokens or more.
std::string some_text(int n) {
  std::string text;
  for (int i = 0; i < n; ++i) text += "a bc de f" + std::to_string(i % 7) + " ";
  return text;
}

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

TEST(Inspect, SaysWhatTheFileHolds) {
  std::string path = golden("tiny_llama.gguf");
  Outcome r = run({"inspect", path, "--json", "--tensors", "--metadata", "--ctx", "100"});
  ASSERT_EQ(r.code, 0) << r.err;
  json j = json::parse(r.out);
  EXPECT_EQ(j["architecture"], "llama");
  EXPECT_EQ(j["file_bytes"], std::filesystem::file_size(path));
  EXPECT_EQ(j["runs"], true);
  EXPECT_EQ(j["memory"]["n_ctx"], 100);
  int64_t bytes = 0, weights = 0, by_dtype = 0;
  for (const auto& t : j["tensor_list"]) {
    bytes += t["bytes"].get<int64_t>();
    int64_t n = 1;
    for (int64_t d : t["shape"]) n *= d;
    weights += n;
  }
  for (const auto& d : j["dtypes"]) by_dtype += d["bytes"].get<int64_t>();
  EXPECT_EQ(j["tensor_bytes"], bytes);
  EXPECT_EQ(by_dtype, bytes);
  EXPECT_EQ(j["weights"], weights);
  EXPECT_NEAR(j["bits_per_weight"].get<double>(), 8.0 * double(bytes) / double(weights), 1e-9);
  // f16 keys and values of every layer
  const json& sizes = j["sizes"];
  for (const char* which : {"n_layers", "n_kv_heads", "d_model", "n_heads", "n_vocab"})
    ASSERT_TRUE(sizes[which].is_number_integer()) << which;
  EXPECT_TRUE(sizes["rope_base"].is_number());
  EXPECT_TRUE(j["tokenizer"]["tokens"].is_number_integer());
  EXPECT_TRUE(j["metadata"]["llama.block_count"].is_number_integer());
  const int64_t layers = sizes["n_layers"], kv = sizes["n_kv_heads"];
  const int64_t d_head = sizes["d_model"].get<int64_t>() / sizes["n_heads"].get<int64_t>();
  EXPECT_EQ(j["memory"]["kv_cache"], layers * kv * d_head * 2 * 2 * 100);
}

TEST(Inspect, FiltersTensors) {
  auto count = [](const std::string& pattern) {
    Outcome r = run({"inspect", golden("tiny_llama.gguf"), "--json", "--tensors", pattern});
    return json::parse(r.out)["tensor_list"].size();
  };
  EXPECT_EQ(count("attn_q"), 2u);
  EXPECT_EQ(count("blk.0.attn_?.weight"), 3u);
  for (const char* file : {"tiny_llama.gguf", "imatrix_gguf_py.gguf"}) {
    Outcome r = run({"inspect", golden(file), "--tensors", "nosuchname"});
    EXPECT_EQ(r.code, 2);
    EXPECT_NE(r.err.find("no tensor matches 'nosuchname'"), std::string::npos) << r.err;
  }
}

// OpenBLAS, which comes along with the solver's libraries, cannot start its threads then.
TEST(Inspect, EndsWhereMemoryIsShort) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer needs terabytes of addresses";
#endif
  const std::string command = "ulimit -v 100000; timeout 60 " + std::string(MT_BINARY) +
                              " inspect " + golden("tiny_llama.gguf") + " >/dev/null 2>&1";
  EXPECT_EQ(std::system(command.c_str()), 0);
}

TEST(Inspect, OpensImatrixFiles) {
  Outcome r = run({"inspect", golden("imatrix_gguf_py.gguf"), "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  json j = json::parse(r.out);
  EXPECT_EQ(j["type"], "imatrix");
  EXPECT_GT(j["entries"].size(), 0u);
  EXPECT_EQ(j["form"], "gguf");
  const std::string older = golden("imatrix_legacy.dat");
  r = run({"inspect", older});
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_NE(r.out.find("want the GGUF form"), std::string::npos) << r.out;
  EXPECT_EQ(json::parse(run({"inspect", older, "--json"}).out)["form"], "dat");
}

TEST(Inspect, FitsTheTerminal) {
  for (int width : {20, 41, 80, 200}) {
    Outcome r = run_in_terminal({"inspect", golden("tiny_gemma3.gguf"), "--tensors"}, width);
    EXPECT_EQ(r.code, 0);
    for (std::string line : lines(r.out)) {
      std::string plain;
      for (size_t i = 0; i < line.size(); ++i) {
        if (line[i] == '\r') continue;
        if (line[i] == '\x1b') {
          i = line.find('m', i);
          continue;
        }
        plain += line[i];
      }
      EXPECT_LE(cli::columns(plain), width) << plain;
    }
  }
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

TEST(Eval, FewWindowsGiveNoIntervals) {
  TemporaryFile text(some_text(60));
  for (const char* n : {"4", "5"}) {
    const std::vector<std::string> words = {
        "eval", golden("tiny_llama.gguf"), "--text", text.path(), "--n-ctx", "16", "--windows", n};
    const bool few = *n == '4';
    const std::string shown = run(words).out;
    EXPECT_EQ(shown.find("no intervals: they need 5 windows") != std::string::npos, few) << shown;
    EXPECT_EQ(shown.find(" [") == std::string::npos, few) << shown;
    auto as_json = words;
    as_json.push_back("--json");
    EXPECT_EQ(json::parse(run(as_json).out)["intervals_hold"], !few);
  }
}

TEST(Eval, ComparesAndChecksTheBound) {
  TemporaryFile text(some_text(60));
  std::vector<std::string> arguments = {"eval",      golden("tiny_llama_b.gguf"),
                                        "--against", golden("tiny_llama.gguf"),
                                        "--text",    text.path(),
                                        "--n-ctx",   "32",
                                        "--windows", "3",
                                        "--json"};
  Outcome r = run(arguments);
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(r.err, "");
  json j = json::parse(r.out);
  EXPECT_EQ(j["windows"], 3);
  EXPECT_EQ(j["tokens"], 45);
  double kl = j["kl"]["mean"]["value"];
  EXPECT_GT(kl, 0);
  EXPECT_TRUE(j["kl"]["mean"]["low"].is_null()) << "three windows give no interval";
  Outcome more = run({"eval", golden("tiny_llama_b.gguf"), "--against", golden("tiny_llama.gguf"),
                      "--text", text.path(), "--n-ctx", "32", "--windows", "6", "--json"});
  const json interval = json::parse(more.out)["kl"]["mean"];
  EXPECT_LE(interval["low"], interval["value"]);
  EXPECT_GE(interval["high"], interval["value"]);
  for (int threads : {1, 3}) {
    auto again = arguments;
    again.insert(again.end(), {"--threads", std::to_string(threads)});
    EXPECT_EQ(run(again).out, r.out) << threads;
  }
  auto bound = [&](double most) {
    auto with = arguments;
    with.insert(with.end(), {"--max-kl", std::to_string(most)});
    return run(with).code;
  };
  EXPECT_EQ(bound(kl * 1.01), 0);
  EXPECT_EQ(bound(kl * 0.99), 1);
}

TEST(Eval, WritesLogits) {
  TemporaryFile text(some_text(60)), out("", ".f32");
  std::vector<std::string> arguments = {"eval",      golden("tiny_llama.gguf"),
                                        "--text",    text.path(),
                                        "--n-ctx",   "16",
                                        "--windows", "2",
                                        "--logits",  out.path()};
  EXPECT_EQ(run(arguments).code, 2);  // exists
  arguments.push_back("--force");
  EXPECT_EQ(run(arguments).code, 0);
  Outcome r = run({"inspect", golden("tiny_llama.gguf"), "--json"});
  int64_t n_vocab = json::parse(r.out)["sizes"]["n_vocab"];
  EXPECT_EQ(std::filesystem::file_size(out.path()), size_t(2 * 16 * n_vocab * 4));
}

TEST(Eval, AnswersQuestions) {
  TemporaryFile questions(
      "{\"query\": \"abc\", \"choices\": [\"d\", \"e f\", \"g\"], \"gold\": 1}\n"
      "{\"query\": \"bcd\", \"choices\": [\"a\", \"c\"], \"gold\": 0}\n",
      ".jsonl");
  Outcome r = run({"eval", golden("tiny_llama.gguf"), "--qa", questions.path(), "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  json j = json::parse(r.out)["qa"];
  EXPECT_EQ(j["questions"], 2);
  for (const char* which : {"accuracy", "accuracy_per_byte"}) {
    double right = j[which]["value"].get<double>() * 2;
    EXPECT_EQ(right, std::round(right));
  }
}

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

TEST(Bench, SaysWhatWasReached) {
  Outcome r =
      run({"bench", golden("tiny_llama.gguf"), "--prompt", "12", "--decode", "4", "--depth", "0,16",
           "--threads", "1,2", "--runs", "2", "--json", "--against", "echo '[{\"avg_ts\": 5}]'"});
  ASSERT_EQ(r.code, 0) << r.err;
  json said = json::parse(r.out);
  ASSERT_EQ(said["machine"].size(), 2u);
  EXPECT_GT(said["machine"][1]["read_bytes_per_second"].get<double>(), 0);
  ASSERT_EQ(said["results"].size(), 8u);
  for (const auto& row : said["results"]) {
    const auto& rate = row["tokens_per_second"];
    EXPECT_GT(rate["low"].get<double>(), 0);
    EXPECT_LE(rate["low"], rate["median"]);
    EXPECT_LE(rate["median"], rate["high"]);
    EXPECT_EQ(row["runs"].size(), 2u);
    EXPECT_EQ(row["against"]["runs"], json({5, 5}));
    EXPECT_FALSE(row["against"]["whole_process"].get<bool>());
    EXPECT_NEAR(row["against"]["ratio"]["high"].get<double>(), rate["high"].get<double>() / 5,
                1e-6 * rate["high"].get<double>());
    EXPECT_GT(row["bytes_per_token"].get<double>(), said["weight_bytes_per_token"].get<double>());
  }
  EXPECT_EQ(said["results"][0]["depth"], 0);
  EXPECT_EQ(said["results"][7]["depth"], 16);
  EXPECT_EQ(said["results"][7]["threads"], 2);
  EXPECT_EQ(said["results"][7]["phase"], "decode");
  EXPECT_GT(said["peak_resident_bytes"].get<int64_t>(), 0);
  Outcome table = run({"bench", golden("tiny_llama.gguf"), "--prompt", "0", "--decode", "2",
                       "--depth", "0", "--threads", "1", "--runs", "1"});
  EXPECT_EQ(table.code, 0) << table.err;
  EXPECT_NE(table.out.find("memory read"), std::string::npos) << table.out;
  EXPECT_NE(table.out.find("decode 2"), std::string::npos) << table.out;
  EXPECT_EQ(table.out.find("prompt "), std::string::npos) << table.out;
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

TEST(Cache, FormatsAreChosenAsInLlamaCpp) {
  const std::string model = golden("tiny_qwen3.gguf");
  auto bytes = [&](std::vector<std::string> options) {
    options.insert(options.begin(), {"inspect", model, "--ctx", "100", "--json"});
    Outcome r = run(options);
    EXPECT_EQ(r.code, 0) << r.err;
    return json::parse(r.out)["memory"]["kv_cache"].get<int64_t>();
  };
  const int64_t f16 = bytes({});
  EXPECT_EQ(bytes({"-ctk", "f32"}), f16 / 2 * 3);
  EXPECT_EQ(bytes({"--cache-type-k", "Q8_0", "-ctv", "q4_0"}), f16 / 128 * (34 + 18));
  for (const char* type : {"f32", "bf16", "q8_0", "q4_0"}) {
    Outcome r = run({"generate", model, "--raw", "-p", "abc", "-n", "30", "-ctk", type, "-ctv",
                     type, "--json"});
    EXPECT_EQ(r.code, 0) << r.err;
  }
  Outcome r = run({"generate", model, "--raw", "-p", "abc", "-ctk", "q5_0"});
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.err.find("--cache-type-k: q5_0 not in"), std::string::npos) << r.err;
  r = run({"generate", model, "--raw", "-p", "abc", "-ctk", "q8_0", "--path", "exact"});
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.err.find("the exact path's is F32"), std::string::npos) << r.err;
  r = run({"generate", golden("tiny_llama.gguf"), "--raw", "-p", "abc", "-ctv", "q8_0"});
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.err.find("multiple of 32 channels, found 16"), std::string::npos) << r.err;
}

TEST(Cache, BenchComparesFormats) {
  Outcome r = run({"bench", golden("tiny_qwen3.gguf"), "-p", "0", "-n", "4", "-d", "20", "-r", "2",
                   "-t", "1", "-ctk", "f32,q8_0,f16", "-ctv", "f32,q4_0,f16", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json said = json::parse(r.out);
  ASSERT_EQ(said["results"].size(), 3u);
  EXPECT_EQ(said["results"][1]["cache"], "Q8_0/Q4_0");
  EXPECT_EQ(said["results"][0]["ratio_to_first_cache"]["median"], 1.0);
  EXPECT_GT(said["results"][1]["ratio_to_first_cache"]["median"].get<double>(), 0);
  // 2 layers, one KV head of 32 channels.
  EXPECT_EQ(said["caches"][0]["kv_bytes_per_position"], 2 * 2 * 128);
  EXPECT_EQ(said["caches"][1]["kv_bytes_per_position"], 2 * (34 + 18));
  r = run({"bench", golden("tiny_qwen3.gguf"), "-ctk", "f32,f16", "-ctv", "f32,f16,q8_0"});
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.err.find("found 2 and 3"), std::string::npos) << r.err;
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
  const size_t first = shown.find("==> 1: abc <==\n"), second = shown.find("==> 2: the end <==\n");
  EXPECT_EQ(first, 0u) << shown;
  EXPECT_LT(second, shown.find("==> 3: abcabcabc <==\n")) << shown;
  const TemporaryFile empty("\n\n");
  EXPECT_EQ(run({"generate", golden("tiny_llama.gguf"), "--prompts", empty.path()}).code, 2);
  EXPECT_EQ(run({"generate", golden("tiny_llama.gguf"), "-p", "a", "--parallel", "2"}).code, 2);
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
