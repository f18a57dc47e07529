#include "file/imatrix.h"

#include <gtest/gtest.h>

#include <cmath>

#include "file/bytes.h"
#include "file/gguf.h"

namespace mt {
namespace {

using namespace test;

const std::filesystem::path kGolden = MT_TEST_DATA;

TEST(Imatrix, ReadsWhatAnIndependentWriterWrote) {
  Imatrix m = read_imatrix(kGolden / "imatrix_gguf_py.gguf");
  EXPECT_EQ(m.datasets, (std::vector<std::string>{"a.txt", "b.txt"}));
  EXPECT_EQ(m.chunk_count, 7);
  EXPECT_EQ(m.chunk_size, 512);
  ASSERT_EQ(m.entries.size(), 3u);
  EXPECT_EQ(m.entries[0].tensor, "blk.0.attn_q.weight");
  EXPECT_EQ(m.entries[0].in_sum2, (std::vector<float>{0, 1.5f, 3, 4.5f, 6, 7.5f, 9, 10.5f}));
  EXPECT_EQ(m.entries[0].count, 96);
  EXPECT_EQ(m.entries[1].in_sum2, std::vector<float>(12, 0.25f));
  EXPECT_EQ(m.entries[2].in_sum2, (std::vector<float>{11, 22, 33}));
  EXPECT_EQ(m.entries[2].count, 9);
}

TEST(Imatrix, ReadsTheFormBeforeGguf) {
  Imatrix m = read_imatrix(kGolden / "imatrix_legacy.dat");
  ASSERT_EQ(m.entries.size(), 2u);
  EXPECT_EQ(m.entries[1].tensor, "blk.0.ffn_down.weight");
  EXPECT_EQ(m.entries[1].count, 128);
  EXPECT_EQ(m.entries[0].in_sum2[7], 10.5f);
  EXPECT_EQ(m.chunk_count, 7);
  EXPECT_EQ(m.datasets, std::vector<std::string>{"a.txt"});
}

TEST(Imatrix, RoundTrip) {
  TempFolder folder;
  Imatrix m;
  m.datasets = {"text.txt"};
  m.chunk_count = 3;
  m.chunk_size = 256;
  m.entries = {{"blk.1.ffn_up.weight", {1, 2, 3}, 768}, {"output.weight", {0, 0.5f}, 768}};
  write_imatrix(folder / "m.gguf", m);
  Imatrix r = read_imatrix(folder / "m.gguf");
  EXPECT_EQ(r.datasets, m.datasets);
  EXPECT_EQ(r.chunk_count, 3);
  EXPECT_EQ(r.chunk_size, 256);
  ASSERT_EQ(r.entries.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(r.entries[i].tensor, m.entries[i].tensor);
    EXPECT_EQ(r.entries[i].in_sum2, m.entries[i].in_sum2);
    EXPECT_EQ(r.entries[i].count, m.entries[i].count);
  }
}

TEST(Imatrix, MalformedFilesAreErrors) {
  TempFolder folder;
  const std::string gguf = read_all(kGolden / "imatrix_gguf_py.gguf");
  const std::string dat = read_all(kGolden / "imatrix_legacy.dat");
  auto error = [&](const std::string& data) {
    write_all(folder / "m", data);
    return error_of([&] { read_imatrix(folder / "m"); }, 12 * data.size() + 8192);
  };
  auto replaced = [](std::string data, const std::string& from, const std::string& to) {
    return data.replace(data.rfind(from), from.size(), to);
  };
  EXPECT_NE(error(replaced(gguf, "exps.weight.in_sum2", "exps.weight.in_SUM2"))
                .find("expected a name in .in_sum2 or .counts"),
            std::string::npos);
  EXPECT_NE(error(replaced(gguf, "q.weight.counts", "k.weight.counts")).find("beside it"),
            std::string::npos);
  std::string type = gguf;
  type.replace(type.find("imatrix"), 7, "imatriX");
  EXPECT_NE(error(type).find("general.type: expected 'imatrix', found 'imatriX'"),
            std::string::npos);
  for (const char* other : {"{\"a\": 1}", "some text that is long enough for anything", "", "abc"})
    EXPECT_NE(error(other).find("expected an importance matrix"), std::string::npos) << other;
  const float nan = std::nanf("");
  std::string value = gguf;
  float quarter = 0.25f;
  value.replace(value.find(std::string(reinterpret_cast<char*>(&quarter), 4)), 4,
                std::string(reinterpret_cast<const char*>(&nan), 4));
  EXPECT_NE(error(value).find("finite sums of squares, found nan"), std::string::npos);
  // Without its last two fields the old form is an older form still; else a cut is an error.
  for (size_t n = 0; n < dat.size(); ++n) {
    if (n != dat.size() - 13) {
      ASSERT_NE(error(dat.substr(0, n)), "") << n;
    }
  }
  for (size_t i = 0; i < dat.size(); ++i)
    for (char c : {'\x7F', '\xFF'}) {
      std::string data = dat;
      data[i] = c;
      error(data);
    }
}

}  // namespace
}  // namespace mt
