#include "flow/measurements.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <limits>
#include <random>
#include <thread>

#include "base/error.h"
#include "base/files.h"

namespace mt {
namespace {
namespace fs = std::filesystem;

class MeasurementsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "microtome-test-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder = name;
    db = folder / "m.microtome.db";
  }
  void TearDown() override {
    fs::permissions(folder, fs::perms::owner_all);
    fs::remove_all(folder);
  }
  std::unique_ptr<Measurements> open() {
    auto m = Measurements::open(db);
    m->select_run("model", "corpus", "n_ctx=512");
    return m;
  }
  std::string error_of(const fs::path& path) {
    try {
      Measurements::open(path)->select_run("model", "corpus", "n_ctx=512");
    } catch (const Error& e) {
      return e.what();
    }
    return {};
  }
  void write(const fs::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
  }
  void sql(const fs::path& path, const char* statements) {
    sqlite3* raw = nullptr;
    ASSERT_EQ(sqlite3_open(path.c_str(), &raw), SQLITE_OK);
    char* why = nullptr;
    EXPECT_EQ(sqlite3_exec(raw, statements, nullptr, nullptr, &why), SQLITE_OK) << (why ? why : "");
    sqlite3_free(why);
    sqlite3_close(raw);
  }
  // Runs `work` in a child process; its result is the exit code (99: an exception).
  pid_t child(const std::function<int()>& work) {
    pid_t pid = ::fork();
    if (pid != 0) return pid;
    int code = 99;
    try {
      code = work();
    } catch (const std::exception& e) {
      fmt::print(stderr, "child: {}\n", e.what());
    }
    ::_exit(code);
  }
  int wait_for(pid_t pid) {
    int status = 0;
    EXPECT_EQ(::waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }

  fs::path folder, db;
};

TEST_F(MeasurementsTest, WhatIsPutComesBackExactlyAfterReopening) {
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<double> numbers = {0.0,
                                       0.1,
                                       -1.0 / 3.0,
                                       5e-324,
                                       std::numeric_limits<double>::max(),
                                       std::nextafter(1.0, 2.0),
                                       9007199254740993.0,
                                       inf,
                                       -inf};
  const std::vector<float> floats = {1.5f, -0.0f, 1e-45f, std::numeric_limits<float>::infinity(),
                                     std::numeric_limits<float>::quiet_NaN()};
  const std::string words("a\0b 'quoted' \xc3\xa9", 15);
  {
    auto m = open();
    for (size_t i = 0; i < numbers.size(); ++i)
      m->put("blk.3.attn_q.weight", "loss", std::to_string(i), numbers[i]);
    m->put("embed", "loss", "nan", std::nan(""));
    m->put("embed", "moment", floats);
    m->put("embed", "none", std::vector<float>{});
    m->put_text("", "sample", words);
    m->put_text("", "empty", "");
  }
  auto m = open();
  for (size_t i = 0; i < numbers.size(); ++i)
    EXPECT_EQ(m->value("blk.3.attn_q.weight", "loss", std::to_string(i)), numbers[i]);
  auto nan = m->value("embed", "loss", "nan");
  ASSERT_TRUE(nan.has_value());
  EXPECT_TRUE(std::isnan(*nan));
  auto back = m->vector("embed", "moment");
  ASSERT_TRUE(back && back->size() == floats.size());
  EXPECT_EQ(std::memcmp(back->data(), floats.data(), floats.size() * sizeof(float)), 0);
  ASSERT_TRUE(m->vector("embed", "none"));
  EXPECT_TRUE(m->vector("embed", "none")->empty());
  EXPECT_EQ(m->text("", "sample"), words);
  EXPECT_EQ(m->text("", "empty"), "");
  EXPECT_FALSE(m->value("embed", "loss", "Q4_0"));
  EXPECT_FALSE(m->vector("embed", "loss"));
  EXPECT_FALSE(m->text("embed", "loss"));
}

TEST_F(MeasurementsTest, RunsAreKeptApart) {
  auto m = open();
  m->put("head", "loss", "Q4_0", 1);
  m->select_run("model", "corpus", "n_ctx=256");
  EXPECT_FALSE(m->value("head", "loss", "Q4_0"));
  m->put("head", "loss", "Q4_0", 2);
  m->select_run("model", "corpus", "n_ctx=512");
  EXPECT_EQ(m->value("head", "loss", "Q4_0"), 1);
  m->select_run("other", "corpus", "n_ctx=512");
  EXPECT_FALSE(m->value("head", "loss", "Q4_0"));
}

TEST_F(MeasurementsTest, RowsComeInOrderAndTheLastValueCounts) {
  auto m = open();
  m->put("b", "loss", "Q4_0", 1);
  m->put("a", "loss", "Q8_0", 2);
  m->put("a", "loss", "Q4_0", 3);
  m->put("a", "other", "Q4_0", 4);
  m->put("b", "loss", "Q4_0", 5);
  auto rows = m->rows("loss");
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].place + rows[0].setting, "aQ4_0");
  EXPECT_EQ(rows[1].place + rows[1].setting, "aQ8_0");
  EXPECT_EQ(rows[2].place + rows[2].setting, "bQ4_0");
  EXPECT_EQ(rows[2].value, 5);
  EXPECT_EQ(rows[2].metric, "loss");
}

TEST_F(MeasurementsTest, ATransactionIsKeptTogetherOrNotAtAll) {
  {
    auto m = open();
    m->begin();
    m->put("a", "loss", "1", 1);
    m->commit();
    m->begin();
    m->put("a", "loss", "2", 2);
    EXPECT_EQ(m->value("a", "loss", "2"), 2);
    m->begin();  // the one above was never committed
    m->put("a", "loss", "3", 3);
    m->commit();
    m->begin();
    m->put("a", "loss", "4", 4);
  }
  auto m = open();
  EXPECT_EQ(m->value("a", "loss", "1"), 1);
  EXPECT_FALSE(m->value("a", "loss", "2"));
  EXPECT_EQ(m->value("a", "loss", "3"), 3);
  EXPECT_FALSE(m->value("a", "loss", "4"));
}

TEST_F(MeasurementsTest, TheTablesAreThoseOfTheDocumentation) {
  {
    auto m = open();
    m->put("embed", "loss", "Q4_0", 0.25);
    m->put("embed", "moment", std::vector<float>{1.0f});
    m->put_text("", "sample", "words");
  }
  sql(db,
      "CREATE TEMP TABLE seen(n CHECK(n=1));"
      "INSERT INTO seen SELECT count(*) FROM measurement JOIN run ON run.id=measurement.run WHERE "
      "model_sha256='model' AND corpus_sha256='corpus' AND settings='n_ctx=512' AND place='embed' "
      "AND metric='loss' AND setting='Q4_0' AND value=0.25;"
      "INSERT INTO seen SELECT count(*) FROM vector WHERE metric='moment' AND hex(data)='0000803F';"
      "INSERT INTO seen SELECT count(*) FROM text WHERE metric='sample' AND text='words';");
}

TEST_F(MeasurementsTest, AKilledWriterLosesOnlyItsLastTransaction) {
  // Pairs are committed together; the child reports each committed pair through a pipe.
  std::mt19937 random(5);
  int64_t before = 0;
  for (int round = 0; round < 8; ++round) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    pid_t pid = child([&] {
      auto m = open();
      for (int64_t i = before;; ++i) {
        m->begin();
        m->put("a", "first", std::to_string(i), static_cast<double>(i));
        m->put("a", "big" + std::to_string(i % 7), std::vector<float>(5000, 1.0f));
        m->put("a", "second", std::to_string(i), static_cast<double>(i));
        m->commit();
        if (::write(ends[1], &i, sizeof i) != sizeof i) return 1;
      }
    });
    ::close(ends[1]);
    int64_t last = -1;
    int n_wanted = static_cast<int>(random() % 20) + 1;
    for (int n = 0; n < n_wanted; ++n) ASSERT_EQ(::read(ends[0], &last, sizeof last), 8);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
    ::kill(pid, SIGKILL);
    EXPECT_EQ(wait_for(pid), 1000 + SIGKILL);
    while (::read(ends[0], &last, sizeof last) == 8) {
    }
    ::close(ends[0]);
    auto m = open();
    auto first = m->rows("first").size(), second = m->rows("second").size();
    EXPECT_EQ(first, second);
    EXPECT_GE(static_cast<int64_t>(first), last + 1);
    EXPECT_LE(static_cast<int64_t>(first), last + 2);
    before = static_cast<int64_t>(first);
  }
}

TEST_F(MeasurementsTest, TwoProcessesCreateAndFillOneFile) {
  for (int round = 0; round < 5; ++round) {
    for (auto* end : {"", "-wal", "-shm"}) fs::remove(db.string() + end);
    constexpr int kEach = 40;
    auto fill = [&](const char* place) {
      return child([this, place] {
        auto m = open();
        for (int i = 0; i < kEach; ++i) {
          if (i % 2) m->begin();
          m->put(place, "loss", std::to_string(i), i);
          if (i % 2) m->commit();
        }
        return 0;
      });
    };
    pid_t a = fill("a"), b = fill("b");
    EXPECT_EQ(wait_for(a), 0);
    EXPECT_EQ(wait_for(b), 0);
    EXPECT_EQ(open()->rows("loss").size(), 2u * kEach);
  }
}

TEST_F(MeasurementsTest, AFullDiskIsAnErrorAndWhatWasKeptStays) {
  { open()->put("a", "loss", "1", 1); }
  pid_t pid = child([&] {
    auto m = open();
    ::signal(SIGXFSZ, SIG_IGN);
    rlimit limit{100000, 100000};  // bytes any file may grow to
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
    try {
      m->put("a", "big", std::vector<float>(1000000));
    } catch (const Error& e) {
      return std::string(e.what()).find(db.string()) == 0 ? 0 : 2;
    }
    return 3;
  });
  EXPECT_EQ(wait_for(pid), 0);
  auto m = open();
  EXPECT_EQ(m->value("a", "loss", "1"), 1);
  EXPECT_FALSE(m->vector("a", "big"));
}

TEST_F(MeasurementsTest, WhatIsNoDatabaseIsNamed) {
  EXPECT_NE(error_of(folder).find("found a folder"), std::string::npos) << error_of(folder);
  EXPECT_NE(error_of("/dev/null").find("found a device"), std::string::npos);
  EXPECT_FALSE(fs::exists("/dev/null-journal"));
  EXPECT_NE(error_of(folder / std::string(230, 'n')).find("--db"), std::string::npos);
  fs::path text = folder / "text";
  write(text, std::string(5000, 'x'));
  std::string said = error_of(text);
  EXPECT_EQ(said.find(text.string()), 0u) << said;
  EXPECT_NE(said.find("--db"), std::string::npos) << said;
  EXPECT_EQ(read_text_file(text), std::string(5000, 'x'));
  EXPECT_NE(error_of(folder / "missing" / "m.db").find("--db"), std::string::npos);
}

TEST_F(MeasurementsTest, AnotherProgramsDatabaseIsLeftAlone) {
  fs::path foreign = folder / "foreign.db";
  sql(foreign, "CREATE TABLE bookmarks(url); INSERT INTO bookmarks VALUES('x');");
  std::string before = read_text_file(foreign);
  EXPECT_NE(error_of(foreign).find("another program"), std::string::npos) << error_of(foreign);
  EXPECT_EQ(read_text_file(foreign), before);
  { open(); }
  sql(db, "PRAGMA user_version=2");
  EXPECT_NE(error_of(db).find("schema version 2"), std::string::npos) << error_of(db);
}

TEST_F(MeasurementsTest, AMissingTableIsDamage) {
  { open(); }
  sql(db, "DROP TABLE vector");
  EXPECT_NE(error_of(db).find("damaged"), std::string::npos) << error_of(db);
}

// Whatever bytes are changed: an Error that names the file, or values; never a crash or a hang.
TEST_F(MeasurementsTest, DamagedBytesNeverCrash) {
  {
    auto m = open();
    m->begin();
    for (int i = 0; i < 300; ++i) m->put("blk.1.ffn_up.weight", "loss", std::to_string(i), i * 0.5);
    m->put("embed", "moment", std::vector<float>(3000, 2.0f));
    m->put_text("", "sample", std::string(2000, 'w'));
    m->commit();
  }
  std::string good = read_text_file(db);
  std::mt19937 random(11);
  int n_errors = 0;
  for (int round = 0; round < 300; ++round) {
    std::string bad = good;
    int n = static_cast<int>(random() % 8) + 1;
    // Half of them near the start, where the header and the schema are.
    size_t reach = round % 2 ? bad.size() : 200;
    for (int i = 0; i < n; ++i) bad[random() % reach] = static_cast<char>(random());
    if (round % 10 == 0) bad.resize(random() % bad.size());
    for (auto* end : {"-wal", "-shm"}) fs::remove(db.string() + end);
    write(db, bad);
    try {
      auto m = open();
      m->rows("loss");
      m->vector("embed", "moment");
      m->text("", "sample");
      m->put("embed", "loss", "new", 1);
    } catch (const Error& e) {
      ++n_errors;
      EXPECT_EQ(std::string(e.what()).find(db.string()), 0u) << e.what();
    }
  }
  EXPECT_GT(n_errors, 100);
}

TEST_F(MeasurementsTest, TheDefaultIsBesideTheModelOrInTheCache) {
  EXPECT_EQ(Measurements::default_path(folder / "x.gguf", "abc"), folder / "x.gguf.microtome.db");
  fs::create_directory(folder / "hf");
  EXPECT_EQ(Measurements::default_path(folder / "hf/", "abc"), folder / "hf.microtome.db");
  ::setenv("XDG_CACHE_HOME", (folder / "cache").c_str(), 1);
  // /proc takes no files, from root either.
  fs::path cached = Measurements::default_path("/proc/x.gguf", "abc");
  ::unsetenv("XDG_CACHE_HOME");
  EXPECT_EQ(cached, folder / "cache/microtome/abc.microtome.db");
  Measurements::open(cached)->select_run("a", "b", "c");
  EXPECT_TRUE(fs::exists(cached));
}

}  // namespace
}  // namespace mt
