// What `compress` does where something is in its way: other files, a kill, a full disk.
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "compress/program.h"
#include "file/gguf.h"

namespace mt {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::bytes_of;
using test::Program;
using test::run_program;
using test::small;
using test::Words;

class CompressSafety : public test::CompressFolder {};

TEST_F(CompressSafety, NothingIsOverwrittenUnasked) {
  const std::string out = folder / "out.gguf";
  test::write_bytes(out, "precious");
  auto r = run_program(small({"compress", model, "--size", "80kB", "-o", out}));
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "--force");
  EXPECT_EQ(bytes_of(out), "precious");
  EXPECT_EQ(files(), (std::set<std::string>{"out.gguf", "tiny_llama.gguf"})) << "refused at once";

  fs::remove(out);
  test::write_bytes(folder / "out.html", "a page");
  r = run_program(small({"compress", model, "--size", "80kB", "-o", out}));
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "out.html");
  EXPECT_EQ(bytes_of(folder / "out.html"), "a page");
  r = run_program(small({"compress", model, "--size", "80kB", "-o", out, "--no-html"}));
  EXPECT_EQ(r.code, 0) << r.err;
  r = run_program(small({"compress", model, "--size", "70kB", "-o", out, "--force"}));
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_LE(fs::file_size(out), 70'000u);

  const std::string before = bytes_of(model);
  fs::create_symlink(model, folder / "link.gguf");
  fs::create_hard_link(model, folder / "hard.gguf");
  for (const std::string& same : {model, folder / "link.gguf", folder / "hard.gguf"}) {
    r = run_program(small({"compress", model, "--size", "80kB", "-o", same, "--force"}));
    EXPECT_EQ(r.code, 2);
    EXPECT_SAYS(r.err, "is the input");
  }
  EXPECT_EQ(bytes_of(model), before);
  r = run_program(small({"compress", model, "--size", "80kB", "-o", folder / "no/such/out.gguf"}));
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "does not exist");
}

TEST_F(CompressSafety, OneFileMayNotServeTwoPurposes) {
  const std::string out = folder / "out.gguf";
  for (const Words& clash : {Words{"--html", out}, Words{"--plan", out},
                             Words{"--plan", folder / "out.html"}, Words{"--db", out}}) {
    Words words = small({"compress", model, "--size", "80kB", "-o", out});
    words.insert(words.end(), clash.begin(), clash.end());
    const auto r = run_program(words);
    EXPECT_EQ(r.code, 2) << clash[0] << " " << clash[1];
    EXPECT_SAYS(r.err, "is named by both");
    EXPECT_EQ(files(), (std::set<std::string>{"tiny_llama.gguf"}));
  }
  auto r = run_program(
      small({"plan", model, "--size", "80kB", "-o", out, "--tensor-types", folder / "./out.gguf"}));
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "is named by both");
  // A bare name of a file that does not exist yet, spelled in two ways.
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  r = run_program(
      small({"compress", model, "--size", "80kB", "-o", "out.gguf", "--html", "./out.gguf"}));
  fs::current_path(before);
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "is named by both");
  EXPECT_EQ(files(), (std::set<std::string>{"tiny_llama.gguf"}));
}

TEST_F(CompressSafety, ANameThatIsTooLongIsRefusedBeforeAnyWork) {
  for (const std::string& name : {std::string(300, 'x'), std::string(252, 'x')}) {
    const auto r = run_program(small({"compress", model, "--size", "80kB", "-o", folder / name}));
    EXPECT_EQ(r.code, 2);
    EXPECT_SAYS(r.err, "the name is too long");  // of the file, or of the page beside it
    EXPECT_EQ(files(), (std::set<std::string>{"tiny_llama.gguf"}));
  }
}

TEST_F(CompressSafety, TwoAtOnceShareTheirMeasurements) {
  for (const std::string name : {"tiny_llama_b", "tiny_qwen3"}) {
    const std::string source = copied(name);
    const auto alone =
        run_program(small({"compress", source, "--size", "80kB", "-o", folder / "alone.gguf",
                           "--force", "--db", folder / (name + ".alone.db")}));
    ASSERT_EQ(alone.code, 0) << alone.err;
    Program a(small({"compress", source, "--size", "80kB", "-o", folder / "a.gguf", "--force"}));
    Program b(small({"compress", source, "--size", "80kB", "-o", folder / "b.gguf", "--force"}));
    const auto ra = a.wait(), rb = b.wait();
    EXPECT_EQ(ra.code, 0) << ra.err;
    EXPECT_EQ(rb.code, 0) << rb.err;
    EXPECT_EQ(bytes_of(folder / "a.gguf"), bytes_of(folder / "alone.gguf"));
    EXPECT_EQ(bytes_of(folder / "b.gguf"), bytes_of(folder / "alone.gguf"));
  }
}

TEST_F(CompressSafety, DamagedMeasurementsAreMadeAgainOrNamed) {
  const std::string db = folder / "m.db", out = folder / "out.gguf";
  const auto compress = [&] {
    return run_program(
        small({"compress", model, "--size", "75kB", "-o", out, "--db", db, "--force"}));
  };
  const auto change = [&](const char* sql) {
    sqlite3* handle = nullptr;
    EXPECT_EQ(sqlite3_open(db.c_str(), &handle), SQLITE_OK);
    EXPECT_EQ(sqlite3_exec(handle, sql, nullptr, nullptr, nullptr), SQLITE_OK) << sql;
    EXPECT_GT(sqlite3_total_changes(handle), 0) << sql;
    sqlite3_close(handle);
  };
  auto r = compress();
  ASSERT_EQ(r.code, 0) << r.err;
  const std::string whole = bytes_of(out);
  for (const char* sql : {"UPDATE measurement SET value=0 WHERE metric='measured_kl'",
                          "UPDATE measurement SET value=-1 WHERE metric='measured_kl'",
                          "UPDATE measurement SET value=9e999 WHERE metric='measured_kl'",
                          "UPDATE measurement SET value=-1 WHERE metric='predicted_kl'",
                          "UPDATE measurement SET value=-3 WHERE metric='moments'",
                          "UPDATE measurement SET value=1e300 WHERE metric='moments'"}) {
    change(sql);
    r = compress();
    EXPECT_EQ(r.code, 0) << sql << r.err;
    EXPECT_TRUE(bytes_of(out) == whole) << sql;
  }
  for (const char* sql : {"UPDATE vector SET data=x'0000c07f' WHERE metric LIKE 'proof of %'",
                          "DELETE FROM vector WHERE metric='in2_sum'"}) {
    change(sql);
    r = compress();
    EXPECT_EQ(r.code, 2) << sql;
    EXPECT_SAYS(r.err, db);
    EXPECT_SAYS(r.err, "delete the file to measure anew, or name another with --db");
  }
}

TEST_F(CompressSafety, AModelThatLiesReadOnlyIsMeasuredInTheCache) {
  for (const char* sub : {"models", "cache", "work"}) fs::create_directory(folder.path() / sub);
  fs::rename(model, folder / "models/m.gguf");
  fs::permissions(folder.path(), fs::perms(0755));
  fs::permissions(folder / "models/m.gguf", fs::perms(0644));
  fs::permissions(folder / "models", fs::perms(0555));
  fs::permissions(folder / "cache", fs::perms(0777));
  fs::permissions(folder / "work", fs::perms(0777));
  const test::ProgramSetting setting{.environment = {{"XDG_CACHE_HOME", folder / "cache"}},
                                     .as_nobody = true};
  auto r = run_program({"--version"}, setting);
  if (r.code >= 126) GTEST_SKIP() << "nobody cannot run the program";
  r = run_program(small({"compress", folder / "models/m.gguf", "--size", "80kB", "-o",
                         folder / "work/out.gguf"}),
                  setting);
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_TRUE(fs::exists(folder / "work/out.gguf"));
  int n = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder / "cache"))
    n += entry.path().string().ends_with(".microtome.db");
  EXPECT_EQ(n, 1);
  n = 0;
  for (const auto& entry : fs::directory_iterator(folder / "models")) n += entry.exists();
  EXPECT_EQ(n, 1) << "beside the model there is nothing new";

  // A folder for the output that cannot be written is refused before any work is done.
  fs::remove_all(folder / "cache/microtome");
  r = run_program(small({"compress", folder / "models/m.gguf", "--size", "80kB", "-o",
                         folder / "models/out.gguf"}),
                  setting);
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "cannot be written");
  EXPECT_TRUE(fs::is_empty(folder / "cache"));
  fs::permissions(folder / "models", fs::perms(0755));
}

TEST_F(CompressSafety, AFullDiskLeavesNoPartOfAFile) {
  auto compress = [&](long largest) {
    return run_program(small({"compress", model, "--size", "80kB", "-o", folder / "out.gguf",
                              "--db", folder / "m.db", "--force"}),
                       {.largest_file = largest});
  };
  // Everything is measured already: what fails is the output.
  ASSERT_EQ(compress(-1).code, 0);
  fs::remove(folder / "out.gguf");
  fs::remove(folder / "out.html");
  const auto before = files();
  auto r = compress(50'000);
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "out.gguf");
  EXPECT_EQ(files(), before);
  // An older file stays whole.
  test::write_bytes(folder / "out.gguf", "older");
  r = compress(50'000);
  EXPECT_EQ(r.code, 2);
  EXPECT_EQ(bytes_of(folder / "out.gguf"), "older");
  // No room for the measurements either.
  fs::remove(folder / "m.db");
  r = compress(50'000);
  EXPECT_EQ(r.code, 2);
  EXPECT_SAYS(r.err, "m.db");
  EXPECT_EQ(bytes_of(folder / "out.gguf"), "older");
  // With room again it goes on where it was.
  r = compress(-1);
  EXPECT_EQ(r.code, 0) << r.err;
}

TEST_F(CompressSafety, SlowKilledAtAnyMomentItEndsWithTheSameBytes) {
  auto words = [&](const std::string& out) {
    return small({"compress", model, "--size", "70kB", "-o", folder / (out + ".gguf"), "--db",
                  folder / (out + ".db"), "--force", "--refine", "30"});
  };
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  auto r = run_program(words("whole"));
  ASSERT_EQ(r.code, 0) << r.err;
  auto took = Clock::now() - start;
  const std::string expected = bytes_of(folder / "whole.gguf");

  const unsigned seed = std::random_device{}();
  std::mt19937 random(seed);
  int killed = 0;
  for (int moment = 0; moment < 10; ++moment) {
    const std::string out = "killed" + std::to_string(moment);
    SCOPED_TRACE("seed " + std::to_string(seed) + ", " + out);
    // Twice: the second kill meets what the first one left.
    for (int again = 0; again < 2; ++again) {
      Program program(words(out));
      std::this_thread::sleep_for(took * (random() % 1000) / 1000);
      program.kill();
      if (program.wait().code == 128 + SIGKILL)
        ++killed;
      else  // the machine has become faster since
        took = took * 3 / 4;
      if (fs::exists(folder / (out + ".gguf"))) {
        EXPECT_EQ(bytes_of(folder / (out + ".gguf")), expected);
      }
    }
    r = run_program(words(out));
    EXPECT_EQ(r.code, 0) << r.err;
    EXPECT_EQ(bytes_of(folder / (out + ".gguf")), expected);
  }
  EXPECT_GE(killed, 5) << "the moments came too late to prove anything";
}

TEST_F(CompressSafety, WhatIsReadIsNotWrittenOver) {
  const std::string m = folder / "m";  // a GGUF by its bytes
  fs::rename(model, m);
  test::write_bytes(folder / "t.txt", "words");
  fs::create_symlink("nowhere", folder / "dangling");
  const std::string text = folder / "t.txt", link = folder / "dangling";
  const std::string db = m + ".microtome.db";
  for (const auto& words :
       std::vector<Words>{{"compress", m, "--bpw", "6", "-o", link},
                          {"compress", m, "--bpw", "6", "--text", text + ":0.5", "-o", text},
                          {"plan", m, "--bpw", "6", "--text", text + ":0.5", "-o", text},
                          {"plan", m, "--bpw", "6", "-o", db},
                          {"profile", m, "--imatrix", db},
                          {"profile", m, "--text", text, "--imatrix", text}}) {
    Words forced = small(words);
    forced.push_back("--force");
    const auto r = run_program(forced);
    EXPECT_EQ(r.code, 2) << words[0] << r.err;
    EXPECT_FALSE(fs::exists(db)) << words[0] << r.err;
  }
  EXPECT_EQ(bytes_of(folder / "t.txt"), "words");
  EXPECT_TRUE(fs::is_symlink(folder / "dangling"));
}

}  // namespace
}  // namespace mt
