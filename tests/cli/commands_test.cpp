#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/run_helper.h"
#include "cli/terminal.h"

// What inspect, eval and bench say, and the formats of the cache.
namespace mt::test {
namespace {

using nlohmann::json;

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

TEST(Help, EndsHoweverNarrowTheTerminal) {
  for (int width : {20, 24, 27, 28, 60}) {
    const Outcome r = run_in_terminal({"compress", "--help"}, width);
    EXPECT_EQ(r.code, 0) << width;
    EXPECT_NE(r.out.find("--size"), std::string::npos);
  }
  EXPECT_EQ(cli::wrapped("      --much-too-long  ", "a word", 8, 20),
            "      --much-too-long\n    a\n    word\n");
  EXPECT_EQ(cli::wrapped("", "ab c", 1, 4), "a\nb\nc\n");
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

TEST(Eval, ThePathOfTheBaseBringsItsOwnCache) {
  TemporaryFile text(some_text(60));
  const std::string model = golden("tiny_qwen3.gguf");
  auto compare = [&](std::vector<std::string> more) {
    std::vector<std::string> words = {"eval",      model,     "--against", model,       "--text",
                                      text.path(), "--n-ctx", "32",        "--windows", "3"};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome table = run(words);
    EXPECT_EQ(table.code, 0) << table.err;
    words.push_back("--json");
    return std::pair(table.out, json::parse(run(words).out));
  };
  const auto [table, same] = compare({"--path", "fast", "--against-path", "fast"});
  EXPECT_EQ(same["kl"]["max"]["value"], 0.0) << "the same path, the same cache";
  EXPECT_EQ(same["cache"], "F16");
  EXPECT_EQ(same["against_cache"], "F16");
  EXPECT_NE(table.find("fast path, base fast path"), std::string::npos) << table;
  const auto [apart, distance] = compare({"--path", "fast", "--against-path", "exact"});
  EXPECT_GT(distance["kl"]["mean"]["value"], 0.0);
  EXPECT_EQ(distance["against_cache"], "F32");
  EXPECT_NE(apart.find("fast path, base exact path"), std::string::npos) << apart;
  // What a cache costs is measured against one in F32.
  const auto [plain, cost] = compare({"--path", "fast"});
  EXPECT_GT(cost["kl"]["mean"]["value"], 0.0);
  EXPECT_EQ(cost["against_cache"], "F32");
  EXPECT_EQ(plain.find("path, base"), std::string::npos) << plain;
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
    const double bytes = row["bytes_per_token"].get<double>();
    EXPECT_GT(bytes, said["weight_bytes_per_token"].get<double>());
    if (row["phase"] != "decode") continue;
    ASSERT_EQ(row["read_bytes_per_second"].size(), 2u);  // beside each run
    const auto& share = row["share_of_bound"];
    for (size_t i = 0; i < 2; ++i) {
      const double reached = row["runs"][i].get<double>() * bytes;
      const double of = reached / row["read_bytes_per_second"][i].get<double>();
      EXPECT_GE(of, share["low"].get<double>() * (1 - 1e-9));
      EXPECT_LE(of, share["high"].get<double>() * (1 + 1e-9));
    }
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

TEST(Cache, LayersMayHaveFormatsOfTheirOwn) {
  const std::string model = golden("tiny_qwen3.gguf");  // two layers
  auto memory = [&](const std::string& keys, const std::string& values) {
    Outcome r = run({"inspect", model, "--ctx", "100", "--json", "-ctk", keys, "-ctv", values});
    EXPECT_EQ(r.code, 0) << r.err;
    return json::parse(r.out)["memory"];
  };
  // 64 bytes for 32 values, keys and values of two layers.
  const int64_t unit = memory("f16", "f16")["kv_cache"].get<int64_t>() / 256;
  EXPECT_EQ(memory("q8_0:1=f16", "q4_0")["kv_cache"], unit * (34 + 64 + 18 + 18));
  EXPECT_EQ(memory("q8_0:0-1=f32:1=q4_0", "f16")["kv_cache"], unit * (128 + 18 + 64 + 64));
  EXPECT_EQ(memory("q8_0:0-1=f32:1=q4_0", "f16")["cache_type_k"], "Q8_0:0-1=F32:1=Q4_0");
  EXPECT_EQ(memory("q4_1_pre_rope:0=q4_1", "f16")["cache_type_k"], "Q4_1_PRE_ROPE:0=Q4_1");
  EXPECT_EQ(memory("q4_1:0=Q4_1_Pre_Rope", "f16")["cache_type_k"], "Q4_1:0=Q4_1_PRE_ROPE");
  auto ids = [&](const std::string& keys) {
    Outcome r = run({"generate", model, "--raw", "-p", "abc", "-n", "40", "-ctk", keys, "--temp",
                     "0", "--json"});
    EXPECT_EQ(r.code, 0) << r.err;
    return json::parse(r.out)["text"];
  };
  EXPECT_EQ(ids("q4_0:0-1=f32"), ids("f32"));
  EXPECT_EQ(ids("q4_1_pre_rope:0-1=f32"), ids("f32"));
  for (const auto& [types, said] :
       {std::pair{"q8_0:2=f16", "expected layers in 0-1"},
        {"q8_0:1-0=f16", "the lower layer first"},
        {"q8_0:x=f16", "'x' is no layer"},
        {"q8_0:1", "expected layers and a format"},
        {"q8_0:", "expected layers and a format"},
        {"q8_0:0=q5_0", "'q5_0' is no format"},
        {"q5_1", "expected f32, f16, bf16, q8_0, q4_0, q4_1 or q4_1_pre_rope"}}) {
    Outcome r = run({"inspect", model, "-ctk", types});
    EXPECT_EQ(r.code, 2) << types;
    EXPECT_NE(r.err.find(said), std::string::npos) << types << ": " << r.err;
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
  EXPECT_EQ(bytes({"-ctk", "q4_1", "-ctv", "q4_0"}), f16 / 128 * (20 + 18));
  EXPECT_EQ(bytes({"-ctk", "q4_1_pre_rope", "-ctv", "q4_0"}), f16 / 128 * (20 + 18));
  EXPECT_EQ(bytes({"-ctk", "f16:1=q4_1"}), f16 / 256 * (64 + 20 + 128));
  for (const char* types : {"q4_1", "f16:1=Q4_1", "q4_1_pre_rope", "f16:1=q4_1_pre_rope"}) {
    Outcome r = run({"generate", model, "--raw", "-p", "abc", "-n", "70", "-ctk", types, "-ctv",
                     "q8_0", "--json"});
    EXPECT_EQ(r.code, 0) << r.err;
    r = run({"generate", model, "--raw", "-p", "abc", "-ctv", types});
    EXPECT_EQ(r.code, 2);
    EXPECT_NE(r.err.find("is a format of cached keys only: expected f32"), std::string::npos)
        << r.err;
    r = run({"generate", model, "--raw", "-p", "abc", "-ctk", types, "--path", "exact"});
    EXPECT_EQ(r.code, 2) << r.err;
  }
  for (const char* type : {"f32", "bf16", "q8_0", "q4_0"}) {
    Outcome r = run({"generate", model, "--raw", "-p", "abc", "-n", "30", "-ctk", type, "-ctv",
                     type, "--json"});
    EXPECT_EQ(r.code, 0) << r.err;
  }
  Outcome r = run({"generate", model, "--raw", "-p", "abc", "-ctk", "q5_0"});
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.err.find("--cache-type-k: 'q5_0' is no format of a cache"), std::string::npos)
      << r.err;
  r = run({"generate", model, "--raw", "-p", "abc", "-ctk", "q8_0", "--path", "exact"});
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.err.find("the exact path's is F32"), std::string::npos) << r.err;
  for (const auto& [option, type] : {std::pair{"-ctv", "q8_0"}, std::pair{"-ctk", "q4_1"}}) {
    r = run({"generate", golden("tiny_llama.gguf"), "--raw", "-p", "abc", option, type});
    EXPECT_EQ(r.code, 2);
    EXPECT_NE(r.err.find("multiple of 32 channels, found 16"), std::string::npos) << r.err;
  }
}

TEST(Bench, HeedsWhatIsSaidBeforeItsName) {
  Outcome r = run({"--threads", "1", "bench", golden("tiny_llama.gguf"), "-p", "4", "-n", "2", "-d",
                   "0", "-r", "1", "--path", "exact", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json said = json::parse(r.out);
  EXPECT_EQ(said["results"][0]["threads"], 1);
  EXPECT_EQ(said["results"][0]["bound"], "f32");
  EXPECT_EQ(said["results"][1]["bound"], "memory");
}

TEST(Cache, BenchComparesFormats) {
  Outcome r = run({"bench", golden("tiny_qwen3.gguf"), "-p", "0", "-n", "4", "-d", "20", "-r", "2",
                   "-t", "1", "-ctk", "f32,q8_0,q4_1_pre_rope", "-ctv", "f32,q4_0,f16", "--json"});
  ASSERT_EQ(r.code, 0) << r.err;
  const json said = json::parse(r.out);
  ASSERT_EQ(said["results"].size(), 3u);
  EXPECT_EQ(said["results"][1]["cache"], "Q8_0/Q4_0");
  EXPECT_EQ(said["results"][2]["cache"], "Q4_1_PRE_ROPE/F16");
  EXPECT_EQ(said["results"][0]["ratio_to_first_cache"]["median"], 1.0);
  EXPECT_GT(said["results"][1]["ratio_to_first_cache"]["median"].get<double>(), 0);
  // 2 layers, one KV head of 32 channels.
  EXPECT_EQ(said["caches"][0]["kv_bytes_per_position"], 2 * 2 * 128);
  EXPECT_EQ(said["caches"][1]["kv_bytes_per_position"], 2 * (34 + 18));
  r = run({"bench", golden("tiny_qwen3.gguf"), "-ctk", "f32,f16", "-ctv", "f32,f16,q8_0"});
  EXPECT_EQ(r.code, 2);
  EXPECT_NE(r.err.find("found 2 and 3"), std::string::npos) << r.err;
  // Heads of 16.
  for (const char* types : {"q4_0", "q8_0", "q4_1", "q4_1_pre_rope"}) {
    r = run({"bench", golden("tiny_llama.gguf"), "-ctk", types});
    EXPECT_EQ(r.code, 2) << types;
    EXPECT_NE(r.err.find("multiple of 32 channels, found 16"), std::string::npos) << r.err;
  }
}

}  // namespace
}  // namespace mt::test
