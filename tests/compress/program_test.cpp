// `compress`, `profile`, `plan` and `cut` as a user runs them.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>

#include "base/files.h"
#include "compress/program.h"
#include "file/gguf.h"
#include "file/imatrix.h"
#include "model/open.h"
#include "support/made_model.h"
#include "text/tokenizer.h"

namespace mt {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::bytes_of;
using test::run_program;
using test::small;
using test::Words;

class CompressProgram : public test::CompressFolder {};

TEST_F(CompressProgram, EverySizeIsKeptAndTheReportAgreesWithTheFile) {
  for (const std::string size : {"200kB", "100KB", "80 kB", "64KiB", "60000"}) {
    SCOPED_TRACE(size);
    const std::string out = folder / "out.gguf";
    const auto r = run_program(small({"compress", model, "--size", size, "-o", out, "--force",
                                      "--json", "--plan", folder / "plan.json"}));
    ASSERT_EQ(r.code, 0) << r.err;
    const json report = json::parse(r.out);
    const int64_t budget =
        size == "64KiB" ? 65536 : std::stoll(size) * (size == "60000" ? 1 : 1000);
    EXPECT_LE(int64_t(fs::file_size(out)), budget);
    EXPECT_GT(int64_t(fs::file_size(out)), budget * 9 / 10);
    EXPECT_EQ(report.at("output_bytes"), fs::file_size(out));
    EXPECT_EQ(report.at("source_bytes"), fs::file_size(model));
    EXPECT_GT(report.at("predicted_kl").get<double>(), 0);
    const json& proof = report.at("comparisons").at(0);
    EXPECT_GT(proof.at("kl_mean").at("value").get<double>(), 0);
    EXPECT_FALSE(report.at("frontier").empty());
    EXPECT_FALSE(report.at("places").empty());

    const TensorFile file = read_gguf(out);
    EXPECT_EQ(file.get_float("microtome.kl.measured"),
              proof.at("kl_mean").at("value").get<double>());
    EXPECT_EQ(file.get_float("microtome.kl.predicted"), report.at("predicted_kl").get<double>());
    EXPECT_EQ(file.need_string("microtome.source.sha256"), report.at("source_sha256"));
    EXPECT_EQ(file.need_string("microtome.goal"), "--size " + size);
    for (const json& place : report.at("places"))
      EXPECT_EQ(name(file.find_tensor(place.at("place").get<std::string>())->dtype),
                place.at("to").get<std::string>());

    const std::string page = bytes_of(folder / "out.html");
    EXPECT_SAYS(page, report.at("output_sha256").get<std::string>());
    EXPECT_EQ(json::parse(bytes_of(folder / "plan.json")).at("places").size(),
              report.at("places").size());
  }
}

TEST_F(CompressProgram, ABoundOnTheLossHolds) {
  for (const std::string bound : {"0.002", "0.01", "0.05", "0.2"}) {
    const std::string out = folder / "out.gguf";
    const auto r =
        run_program(small({"compress", model, "--max-kl", bound, "-o", out, "--force", "--json"}));
    ASSERT_EQ(r.code, 0) << r.err;
    const json report = json::parse(r.out);
    const double measured = report.at("comparisons").at(0).at("kl_mean").at("value");
    EXPECT_LE(measured, std::stod(bound));
    EXPECT_GT(measured, 0.5 * std::stod(bound)) << "bytes are given away";
    EXPECT_SAYS(report.at("notes").dump(), "none of them the proof's");
    EXPECT_SAYS(read_gguf(out).need_string("microtome.plan.aimed_on"), "none of them the proof's");
  }
}

TEST_F(CompressProgram, ThreadsDoNotChangeTheFile) {
  const std::string one = folder / "one.gguf", three = folder / "three.gguf";
  auto r = run_program(small({"compress", model, "--size", "75kB", "-o", one, "--threads", "1",
                              "--db", folder / "one.db"}));
  ASSERT_EQ(r.code, 0) << r.err;
  r = run_program(small({"compress", model, "--size", "75kB", "-o", three, "--threads", "3", "--db",
                         folder / "three.db"}));
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(bytes_of(one), bytes_of(three));
}

TEST_F(CompressProgram, TextOfTheUsersOwn) {
  std::string text;
  std::mt19937 random(1);
  for (int i = 0; i < 3000; ++i) text += i % 6 == 5 ? ' ' : char('a' + random() % 26);
  test::write_bytes(folder / "a.txt", text);
  std::reverse(text.begin(), text.end());
  test::write_bytes(folder / "b.txt", text);
  auto compress = [&](const std::string& out, const Words& more) {
    Words words = small({"compress", model, "--size", "75kB", "-o", folder / out, "--json"});
    words.insert(words.end(), more.begin(), more.end());
    const auto r = run_program(words);
    EXPECT_EQ(r.code, 0) << r.err;
    return r.code ? json() : json::parse(r.out).at("comparisons").at(0);
  };
  const json both =
      compress("both.gguf", {"--text", folder / "a.txt", "--text", (folder / "b.txt") + ":0.5"});
  ASSERT_TRUE(both.is_object());
  EXPECT_EQ(both.at("corpus"), "a.txt + b.txt (held out)");
  EXPECT_EQ(both.at("n_windows"), 4);
  const json one = compress("one.gguf", {"--text", folder / "a.txt"});
  ASSERT_TRUE(one.is_object());
  EXPECT_NE(one.at("corpus_sha256"), both.at("corpus_sha256"));
  EXPECT_NE(bytes_of(folder / "one.gguf"), bytes_of(folder / "both.gguf"));
  compress("again.gguf", {"--text", folder / "a.txt"});
  EXPECT_EQ(bytes_of(folder / "again.gguf"), bytes_of(folder / "one.gguf"));

  auto r = run_program({"profile", model, "--text", folder / "a.txt", "--n-ctx", "32", "--windows",
                        "100000", "--measured", "0"});
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_SAYS(r.err, "fewer than were asked for");
  test::write_bytes(folder / "short.txt", "too short");
  r = run_program(small({"compress", model, "--size", "75kB", "-o", folder / "x.gguf", "--text",
                         folder / "short.txt"}));
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "short.txt: text too short");
  r = run_program(small({"compress", model, "--size", "75kB", "-o", folder / "x.gguf", "--text",
                         folder / "none.txt"}));
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "none.txt");
  EXPECT_FALSE(fs::exists(folder / "x.gguf"));
}

TEST_F(CompressProgram, FilesHaveNames) {
  for (const char* option : {"--db", "--plan", "--html", "--text"}) {
    const auto r =
        run_program({"compress", model, "--size", "75kB", "-o", folder / "x.gguf", option, ""});
    EXPECT_EQ(r.code, 2) << option;
    EXPECT_SAYS(r.err, ": the name is empty");
  }
  EXPECT_FALSE(fs::exists(folder / "x.gguf"));
}

TEST_F(CompressProgram, ASearchTakesATimeAndAGoalInBytes) {
  for (const char* time : {"1x", "-1", "nan", "1e9h", "", "s"}) {
    const auto r = run_program(small({"plan", model, "--size", "65kB", "--search-time", time}));
    EXPECT_EQ(r.code, 2) << time;
    EXPECT_SAYS(r.err, "90s, 10m or 1.5h");
  }
  auto r = run_program(small({"plan", model, "--max-kl", "0.1", "--search-time", "1s"}));
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "it goes with --size or --bpw");
  r = run_program(small(
      {"plan", model, "--size", "60kB", "--search-time", "0.01m", "-o", folder / "searched.json"}));
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_SAYS(r.err, "search: plans near the first measured on calibration text: ");
}

TEST_F(CompressProgram, AnImportanceMatrixWeighsTheRounding) {
  auto r = run_program(small({"profile", model, "--imatrix", folder / "m.gguf"}));
  ASSERT_EQ(r.code, 0) << r.err;
  const Imatrix m = read_imatrix(folder / "m.gguf");
  EXPECT_EQ(m.entries.size(), 15u);  // all maps but the embedding
  r = run_program(small({"plan", model, "--size", "65kB", "-o", folder / "plan.json"}));
  ASSERT_EQ(r.code, 0) << r.err;
  auto cut = [&](const std::string& out, const Words& more) {
    Words words = small({"cut", model, folder / "plan.json", "-o", folder / out});
    words.insert(words.end(), more.begin(), more.end());
    const auto done = run_program(words);
    EXPECT_EQ(done.code, 0) << done.err;
    return read_gguf(folder / out);
  };
  const std::string down = "blk.1.ffn_down.weight";
  auto bytes = [&](const TensorFile& f) {
    const auto span = f.find_tensor(down)->data.bytes;
    return std::string(reinterpret_cast<const char*>(span.data()), span.size());
  };
  const TensorFile by_matrix = cut("matrix.gguf", {"--imatrix", folder / "m.gguf", "--no-proof"});
  const TensorFile by_profile = cut("profile.gguf", {"--no-proof"});
  // Along a row the profile weighs by the same input moments; only the embedding and the rows'
  // own weights differ, which a search inside blocks does not see, but for the rounding of sums
  // where two choices are equally good.
  const std::string a = bytes(by_matrix), b = bytes(by_profile);
  ASSERT_EQ(a.size(), b.size());
  size_t differ = 0;
  for (size_t i = 0; i < a.size(); ++i) differ += a[i] != b[i];
  EXPECT_LE(differ, a.size() / 100);
  // The receipt names what the rounding was weighed by, and claims no proof that was not made.
  EXPECT_EQ(by_matrix.need_string("microtome.calibration"), "m.gguf");
  EXPECT_EQ(by_matrix.need_string("microtome.calibration.sha256"),
            sha256_hex(bytes_of(folder / "m.gguf")));
  EXPECT_EQ(by_profile.need_string("microtome.calibration"), "sampled from the model");
  for (const char* key : {"microtome.proof", "microtome.kl.measured"}) {
    EXPECT_EQ(by_matrix.find_meta(key), nullptr) << key;
    EXPECT_EQ(by_profile.find_meta(key), nullptr) << key;
    EXPECT_NE(cut("proved.gguf", {"--force"}).find_meta(key), nullptr) << key;
  }
  Imatrix reversed = m;
  for (auto& e : reversed.entries) std::reverse(e.in_sum2.begin(), e.in_sum2.end());
  write_imatrix(folder.path() / "reversed.gguf", reversed);
  EXPECT_NE(bytes(cut("reversed_out.gguf", {"--imatrix", folder / "reversed.gguf", "--no-proof"})),
            bytes(by_matrix));
  Imatrix zero = m;
  for (auto& e : zero.entries) std::fill(e.in_sum2.begin(), e.in_sum2.end(), 0.0f);
  write_imatrix(folder.path() / "zero.gguf", zero);
  r = run_program(small({"cut", model, folder / "plan.json", "-o", folder / "x.gguf", "--imatrix",
                         folder / "zero.gguf"}));
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "zero.gguf: imatrix: expected sums above zero");
  reversed.entries[0].in_sum2.pop_back();
  write_imatrix(folder.path() / "wrong.gguf", reversed);
  r = run_program(small({"cut", model, folder / "plan.json", "-o", folder / "x.gguf", "--imatrix",
                         folder / "wrong.gguf"}));
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, reversed.entries[0].tensor);
}

TEST_F(CompressProgram, APlanEditedByHandIsCarriedOut) {
  auto r = run_program(small({"plan", model, "--size", "80kB", "-o", folder / "plan.json"}));
  ASSERT_EQ(r.code, 0) << r.err;
  const json plan = json::parse(bytes_of(folder / "plan.json"));
  auto cut = [&](const json& edited, const Words& more = {}) {
    test::write_bytes(folder / "edited.json", edited.dump());
    Words words =
        small({"cut", model, folder / "edited.json", "-o", folder / "out.gguf", "--force"});
    words.insert(words.end(), more.begin(), more.end());
    return run_program(words);
  };
  json edited = plan;
  json& first = edited.at("places").at(2);
  const std::string place = first.at("place");
  first["dtype"] = first.at("dtype") == "Q4_1" ? "Q8_0" : "Q4_1";
  first.erase("keep");
  r = cut(edited);
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(name(read_gguf(folder / "out.gguf").find_tensor(place)->dtype),
            first.at("dtype").get<std::string>());
  const auto goal = [&] { return read_gguf(folder / "out.gguf").need_string("microtome.goal"); };
  EXPECT_EQ(goal(), "--size 80kB, edited by hand");
  // It was predicted again, from the measurements: what a plan of this format alone would lose.
  EXPECT_SAYS(r.out, "1 place was edited by hand: predicted again");
  const auto predicted = [&] {
    return read_gguf(folder / "out.gguf").get_float("microtome.kl.predicted");
  };
  const json uniform = [&] {
    const auto all =
        run_program(small({"plan", model, "--type", first.at("dtype").get<std::string>()}));
    EXPECT_EQ(all.code, 0) << all.err;
    return json::parse(all.out);
  }();
  // The total is measured: it changes as the sum does.
  double before = 0;
  for (const json& other : plan.at("places")) before += other.at("loss").get<double>();
  double after = before - plan.at("places").at(2).at("loss").get<double>();
  for (const json& other : uniform.at("places"))
    if (other.at("place") == place) after += other.at("loss").get<double>();
  const double expected = plan.at("predicted_kl").get<double>() * after / before;
  EXPECT_NEAR(predicted().value_or(0), expected, 1e-9);
  EXPECT_NE(expected, plan.at("predicted_kl").get<double>());
  // Without measurements that is not possible, and it is said.
  r = cut(edited, {"--db", folder / "empty.db", "--no-proof"});
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_SAYS(r.err, "the database has no predictions");
  EXPECT_EQ(predicted(), plan.at("predicted_kl").get<double>());
  EXPECT_EQ(goal(), "--size 80kB, edited by hand");
  // A head that is tied by hand is an edit too.
  json tied = plan;
  tied["head"] = "tied";
  tied["tied_source"] = "token_embd.weight";
  json& places = tied.at("places");
  places.erase(std::find_if(places.begin(), places.end(),
                            [](const json& p) { return p.at("place") == "output.weight"; }));
  r = cut(tied);
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(goal(), "--size 80kB, edited by hand");
  EXPECT_GT(predicted().value_or(0), 10 * plan.at("predicted_kl").get<double>());
  // What is kept cannot change its format.
  edited.at("places").at(2)["keep"] = true;
  r = cut(edited);
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "leave out \"keep\"");
  // A cut of the same plan is the same file as compress makes of it.
  r = cut(plan);
  ASSERT_EQ(r.code, 0) << r.err;
  r = run_program(small(
      {"compress", model, "--size", "80kB", "--feedback", "none", "-o", folder / "whole.gguf"}));
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_TRUE(bytes_of(folder / "out.gguf") == bytes_of(folder / "whole.gguf"));

  // An edit may miss the goal: that is said, and the file is written as asked.
  json larger = plan;
  for (json& p : larger.at("places")) {
    p["dtype"] = "Q8_0";
    p.erase("keep");
  }
  for (const Words& more : {Words{}, Words{"--db", folder / "empty.db", "--no-proof"}}) {
    r = cut(larger, more);
    EXPECT_EQ(r.code, 0) << r.err;
    EXPECT_SAYS(r.err, "warning: the plan was edited by hand and takes ");
    EXPECT_SAYS(r.err, " bytes now; its goal allows 80,000");
  }
  json worse = plan;
  worse["goal"] = "--max-kl 0.0001";
  for (json& p : worse.at("places")) {
    p["dtype"] = "Q4_0";
    p.erase("keep");
  }
  r = cut(worse);
  EXPECT_EQ(r.code, 1) << r.err;
  EXPECT_SAYS(r.err, "its goal allows 0.0001000");
  EXPECT_SAYS(r.err, "the plan's bound does not hold");

  edited = plan;
  edited.at("places").at(2)["dtype"] = "Q9_9";
  r = cut(edited);
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "Q9_9");
  edited = plan;
  edited.at("places").erase(2);
  r = cut(edited);
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, place);
  edited = plan;
  edited.at("places").at(2)["dtype"] = "Q4_K";  // rows of 64
  edited.at("places").at(2).erase("keep");
  r = cut(edited);
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, place);

  const std::string other = copied("tiny_qwen2");
  r = run_program(small({"cut", other, folder / "plan.json", "-o", folder / "x.gguf"}));
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "another model");
  EXPECT_FALSE(fs::exists(folder / "x.gguf"));
}

TEST_F(CompressProgram, APlanCarriedOutAgainMakesTheSameFile) {
  for (const std::string steps : {"0", "6"}) {
    SCOPED_TRACE(steps);
    auto r = run_program(small({"compress", model, "--size", "75kB", "-o", folder / "one.gguf",
                                "--refine", steps, "--plan", folder / "plan.json", "--force"}));
    ASSERT_EQ(r.code, 0) << r.err;
    r = run_program(small({"cut", model, folder / "plan.json", "-o", folder / "two.gguf",
                           "--feedback", "independent", "--refine", steps, "--force"}));
    ASSERT_EQ(r.code, 0) << r.err;
    EXPECT_TRUE(bytes_of(folder / "one.gguf") == bytes_of(folder / "two.gguf"));
  }
  EXPECT_EQ(read_gguf(folder / "two.gguf").need_int("microtome.refine.steps"), 6);
}

TEST_F(CompressProgram, CutSaysThatThePlanWasMadeWithOtherText) {
  test::write_bytes(folder / "a.txt", std::string(3000, 'a'));
  const Words text = {"--text", folder / "a.txt"};
  Words plan = small({"plan", model, "--size", "75kB", "-o", folder / "plan.json"});
  plan.insert(plan.end(), text.begin(), text.end());
  ASSERT_EQ(run_program(plan).code, 0);
  Words cut = small({"cut", model, folder / "plan.json", "-o", folder / "o.gguf", "--force"});
  EXPECT_SAYS(run_program(cut).err, "was made with other calibration text (a.txt)");
  cut.insert(cut.end(), text.begin(), text.end());
  EXPECT_EQ(run_program(cut).err.find("other calibration text"), std::string::npos);
}

TEST_F(CompressProgram, AFrontierTakesNoGoalAndNoFile) {
  for (const Words& more : {Words{"--size", "75kB"}, Words{"-o", folder / "p.json"}}) {
    Words words = small({"plan", model, "--frontier", "3"});
    words.insert(words.end(), more.begin(), more.end());
    const auto r = run_program(words);
    EXPECT_EQ(r.code, 2);
    EXPECT_SAYS(r.err, "--frontier shows many sizes");
  }
}

TEST_F(CompressProgram, AVerySmallBoundIsReachedByKeepingAll) {
  const auto r = run_program(
      small({"compress", model, "--max-kl", "1e-9", "--refine", "4", "-o", folder / "o.gguf"}));
  EXPECT_EQ(r.code, 0) << r.err;
}

TEST_F(CompressProgram, AGoalThatCannotBeReachedIsExplained) {
  const auto plan = [&](const Words& goal) {
    Words words = small({"plan", model, "--types", "Q4_0,Q8_0"});
    words.insert(words.end(), goal.begin(), goal.end());
    return run_program(words);
  };
  auto r = plan({"--size", "75"});
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "did you mean --size 75MB?");
  r = plan({"--bpw", "1"});
  EXPECT_EQ(r.code, 2);
  const std::string found = "that is --bpw ";
  EXPECT_SAYS(r.err, found);
  const double floor = std::stod(r.err.substr(r.err.find(found) + found.size()));
  EXPECT_EQ(plan({"--bpw", std::to_string(floor)}).code, 0);
  EXPECT_EQ(plan({"--bpw", std::to_string(floor - 0.01)}).code, 2);
  // Where sizes give the same plan, those left out are counted.
  r = plan({"--frontier", "200"});
  EXPECT_EQ(r.code, 0);
  EXPECT_SAYS(r.out, " sizes, not 200: at the others no plan loses less");
}

TEST_F(CompressProgram, ANameThatIsNoUtf8) {
  const std::string odd = folder / "m\xff.gguf", text = folder / "t\xfe.txt";
  fs::rename(model, odd);
  test::write_bytes(text, std::string(4000, 'a'));
  const auto r = run_program(small({"compress", odd, "--size", "80kB", "-o", folder / "out.gguf",
                                    "--text", text, "--plan", folder / "plan.json"}));
  ASSERT_EQ(r.code, 0) << r.err;
  EXPECT_EQ(read_gguf(folder / "out.gguf").need_string("microtome.calibration"), "t\ufffd.txt");
  EXPECT_EQ(json::parse(bytes_of(folder / "plan.json")).at("model_name"), "m\ufffd.gguf");
}

TEST_F(CompressProgram, AnExportedFolderIsTheSameModel) {
  for (const std::string name : {"tiny_llama_b", "tiny_qwen2", "tiny_qwen3", "tiny_gemma3"}) {
    SCOPED_TRACE(name);
    const std::string source = copied(name), hf = folder / (name + ".hf");
    auto r = run_program({"export", source, "-o", hf, "--type", "f32"});
    ASSERT_EQ(r.code, 0) << r.err;
    EXPECT_EQ(run_program({"export", source, "-o", hf}).code, 2) << "not empty";
    EXPECT_EQ(run_program({"export", hf, "-o", hf, "--force"}).code, 2) << "its own input";
    EXPECT_EQ(run_program({"export", source, "-o", folder.path().string(), "--force"}).code, 2);
    auto written = [&](const std::string& model_path) {
      const auto g = run_program(
          {"generate", model_path, "--raw", "-p", "ab", "-n", "12", "--path", "exact", "--json"});
      EXPECT_EQ(g.code, 0) << g.err;
      return json::parse(g.out).at("ids");
    };
    EXPECT_EQ(written(hf), written(source));
    // From the folder to a small GGUF without any other tool; as small and as good as from the
    // GGUF.
    auto compress = [&](const std::string& from, const std::string& out) {
      const auto c = run_program(small({"compress", from, "--bpw", "7", "-o", folder / out, "--db",
                                        folder / (out + ".db"), "--json"}));
      EXPECT_EQ(c.code, 0) << c.err;
      return json::parse(c.out).at("comparisons").at(0).at("kl_mean").at("value").get<double>();
    };
    const double from_folder = compress(hf, name + ".a.gguf"),
                 direct = compress(source, name + ".b.gguf");
    EXPECT_NEAR(from_folder, direct, 0.02 * direct);
    const TensorFile a = read_gguf(folder / (name + ".a.gguf")),
                     b = read_gguf(folder / (name + ".b.gguf"));
    ASSERT_NE(a.get_strings("tokenizer.ggml.tokens"), nullptr);
    EXPECT_EQ(*a.get_strings("tokenizer.ggml.tokens"), *b.get_strings("tokenizer.ggml.tokens"));
  }
}

// SmolLM2 (MT_SMOLLM2 names its GGUF; `make demo` leaves one in models/): quantised, decoded to a
// folder, and compressed from there.
TEST_F(CompressProgram, SlowARealFolderLosesAsItsFile) {
  const char* named = std::getenv("MT_SMOLLM2");
  const std::string source =
      named ? named : std::string(MT_SOURCE_DIR) + "/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!fs::exists(source)) GTEST_SKIP() << source << " is not here";
  const std::string hf = folder / "hf";
  ASSERT_EQ(run_program({"export", source, "-o", hf}).code, 0);
  auto compress = [&](const std::string& from, const std::string& out) {
    const auto c = run_program({"compress",
                                from,
                                "--size",
                                "75MB",
                                "-o",
                                folder / out,
                                "--db",
                                folder / (out + ".db"),
                                "--windows",
                                "4",
                                "--proof-windows",
                                "5",
                                "--n-ctx",
                                "64",
                                "--measured",
                                "4",
                                "--refine",
                                "0",
                                "--no-html",
                                "--json"});
    EXPECT_EQ(c.code, 0) << c.err;
    return json::parse(c.out);
  };
  const json a = compress(hf, "a.gguf"), b = compress(source, "b.gguf");
  EXPECT_LE(fs::file_size(folder / "a.gguf"), 75'000'000u);
  EXPECT_GT(fs::file_size(folder / "a.gguf"), 74'900'000u);
  // The folder has no Q4_1 maps to keep, and the texts that the two write differ a little.
  const auto kl = [](const json& r) {
    return r.at("comparisons").at(0).at("kl_mean").at("value").get<double>();
  };
  EXPECT_LT(kl(a), 1.5 * kl(b));
  EXPECT_GT(kl(a), kl(b) / 1.5);
  // The same ids for the same text.
  const TensorFile from_folder = read_gguf(folder / "a.gguf"), from_file = read_gguf(source);
  const auto mine = Tokenizer::open(from_folder), its = Tokenizer::open(from_file);
  for (const std::string text : {"The cat sat.", "  def f(x):\n\treturn x**2  # né",
                                 "日本語 и русский 🙂🙂", "<|im_start|>user"})
    EXPECT_EQ(mine->encode(text, true), its->encode(text, true)) << text;
}

// Root may write anywhere: what a user may not is tried as nobody.

}  // namespace
}  // namespace mt
