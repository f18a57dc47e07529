#include "file/gguf.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "file/bytes.h"
#include "file/open.h"

namespace mt {
namespace {

using namespace test;
using testing::AssertionFailure;
using testing::AssertionResult;
using testing::AssertionSuccess;

// One of every value type and three tensors.
Bytes small_file(uint32_t alignment = 32) {
  Bytes b;
  b.data = "GGUF";
  b.put<uint32_t>(3, "version").put<uint64_t>(3, "tensors").put<uint64_t>(16, "pairs");
  auto pair = [&](const std::string& key, uint32_t type) -> Bytes& {
    return b.text(key, key).put<uint32_t>(type, key + " type");
  };
  pair("general.alignment", 4).put<uint32_t>(alignment, "alignment");
  pair("a.u8", 0).put<uint8_t>(200, "a.u8 value");
  pair("a.i8", 1).put<int8_t>(-7, "a.i8 value");
  pair("a.u16", 2).put<uint16_t>(60000, "a.u16 value");
  pair("a.i16", 3).put<int16_t>(-300, "a.i16 value");
  pair("a.i32", 5).put<int32_t>(-70000, "a.i32 value");
  pair("a.f32", 6).put<float>(0.1f, "a.f32 value");
  pair("a.bool", 7).put<uint8_t>(1, "a.bool value");
  pair("a.string", 8).text("text \xE2\x96\x81", "a.string value");
  pair("a.u64", 10).put<uint64_t>(UINT64_MAX, "a.u64 value");
  pair("a.i64", 11).put<int64_t>(INT64_MIN, "a.i64 value");
  pair("a.f64", 12).put<double>(-0.25, "a.f64 value");
  auto array = [&](const std::string& key, uint32_t type, uint64_t n) -> Bytes& {
    return pair(key, 9).put<uint32_t>(type, key + " element").put<uint64_t>(n, key + " count");
  };
  array("b.i16", 3, 3).put<int16_t>(1, "e").put<int16_t>(-2, "e").put<int16_t>(3, "e");
  array("b.bool", 7, 2).put<uint8_t>(0, "b.bool 0").put<uint8_t>(1, "b.bool 1");
  array("b.strings", 8, 2).text("one", "b.strings 0").text("", "b.strings 1");
  array("b.empty", 6, 0);
  auto tensor = [&](const std::string& name, std::vector<int64_t> dims, uint32_t type,
                    uint64_t offset) {
    b.text(name, name).put<uint32_t>(uint32_t(dims.size()), name + " dims");
    for (size_t d = 0; d < dims.size(); ++d)
      b.put<int64_t>(dims[d], name + " dim " + std::to_string(d));
    b.put<uint32_t>(type, name + " type").put<uint64_t>(offset, name + " offset");
  };
  auto padded = [&](uint64_t n) { return (n + alignment - 1) / alignment * alignment; };
  tensor("f", {5}, 0, 0);
  tensor("q", {64, 3}, 2, padded(20));
  tensor("h", {1, 2, 3, 4}, 1, padded(20) + padded(108));
  b.pad(alignment);
  for (size_t bytes : {20, 108, 48}) {
    for (size_t i = 0; i < bytes; ++i) b.data += char(i * 37 + bytes);
    b.pad(alignment);
  }
  return b;
}

// The metadata of a file of n bytes takes at most so much memory: a string of 8 bytes in the file
// is one of 32 in memory, a small entry 72.
size_t bound(const std::string& data) {
  return 12 * data.size() + 8192;
}

std::string parse_error(const std::string& data) {
  SharedBytes bytes = share(data);
  return error_of([&] { parse_gguf("f.gguf", bytes); }, bound(data));
}

AssertionResult fails_with(const std::string& data, const std::string& text) {
  std::string error = parse_error(data);
  if (error.empty()) return AssertionFailure() << "no error";
  if (!error.starts_with("f.gguf: gguf: "))
    return AssertionFailure() << "does not name file and format: " << error;
  if (error.find(": expected ") == std::string::npos || error.find(", found ") == std::string::npos)
    return AssertionFailure() << "does not say expected and found: " << error;
  if (error.find(text) == std::string::npos)
    return AssertionFailure() << "'" << text << "' is not in: " << error;
  return AssertionSuccess();
}

TEST(Gguf, ReadsEveryValueTypeAndTensor) {
  TensorFile f = parse_gguf("f.gguf", share(small_file().data));
  EXPECT_EQ(f.metadata.size(), 16u);
  EXPECT_EQ(std::get<uint8_t>(f.find_meta("a.u8")->value), 200);
  EXPECT_EQ(std::get<int8_t>(f.find_meta("a.i8")->value), -7);
  EXPECT_EQ(std::get<uint16_t>(f.find_meta("a.u16")->value), 60000);
  EXPECT_EQ(std::get<int16_t>(f.find_meta("a.i16")->value), -300);
  EXPECT_EQ(std::get<int32_t>(f.find_meta("a.i32")->value), -70000);
  EXPECT_EQ(std::get<float>(f.find_meta("a.f32")->value), 0.1f);
  EXPECT_EQ(std::get<bool>(f.find_meta("a.bool")->value), true);
  EXPECT_EQ(std::get<std::string>(f.find_meta("a.string")->value), "text \xE2\x96\x81");
  EXPECT_EQ(std::get<uint64_t>(f.find_meta("a.u64")->value), UINT64_MAX);
  EXPECT_EQ(std::get<int64_t>(f.find_meta("a.i64")->value), INT64_MIN);
  EXPECT_EQ(std::get<double>(f.find_meta("a.f64")->value), -0.25);
  EXPECT_EQ(std::get<std::vector<int16_t>>(f.find_meta("b.i16")->value),
            (std::vector<int16_t>{1, -2, 3}));
  EXPECT_EQ(std::get<std::vector<bool>>(f.find_meta("b.bool")->value),
            (std::vector<bool>{false, true}));
  EXPECT_EQ(*f.get_strings("b.strings"), (std::vector<std::string>{"one", ""}));
  EXPECT_TRUE(std::get<std::vector<float>>(f.find_meta("b.empty")->value).empty());
  ASSERT_EQ(f.tensors.size(), 3u);
  EXPECT_EQ(f.tensors[1].name, "q");
  EXPECT_EQ(f.tensors[1].shape, (std::vector<int64_t>{3, 64}));
  EXPECT_EQ(f.tensors[1].dtype, Dtype::Q4_0);
  EXPECT_EQ(f.tensors[1].data.bytes.size(), 108u);
  EXPECT_EQ(f.tensors[1].data.bytes[1], std::byte(char(37 + 108)));
  EXPECT_EQ(f.tensors[2].shape, (std::vector<int64_t>{4, 3, 2, 1}));
}

TEST(Gguf, RoundTripIsByteIdentical) {
  TempFolder folder;
  for (uint32_t alignment : {1u, 32u, 64u, 4096u}) {
    Bytes b = small_file(alignment);
    TensorFile f = parse_gguf("f.gguf", share(b.data));
    write_gguf(folder / "out.gguf", f.metadata, sources(f.tensors));
    EXPECT_EQ(read_all(folder / "out.gguf"), b.data) << "alignment " << alignment;
    EXPECT_EQ(gguf_file_bytes(f.metadata, sources(f.tensors)), int64_t(b.data.size()));
  }
}

TEST(Gguf, VersionTwoAndVocabularyAloneAreRead) {
  EXPECT_EQ(parse_error(with<uint32_t>(small_file(), "version", 2)), "");
  Bytes b;
  b.data = "GGUF";
  b.put<uint32_t>(3, "version").put<uint64_t>(0, "tensors").put<uint64_t>(1, "pairs");
  b.text("k", "k").put<uint32_t>(7, "type").put<uint8_t>(1, "value");
  EXPECT_EQ(parse_gguf("f.gguf", share(b.data)).metadata.size(), 1u);
}

TEST(Gguf, TruncatedAnywhereIsAnError) {
  const Bytes b = small_file();
  const size_t padding_at_the_end = 16;  // 48 bytes of 'h' in 64
  for (size_t n = 0; n < b.data.size() - padding_at_the_end; ++n)
    ASSERT_TRUE(fails_with(b.data.substr(0, n), "")) << "cut at byte " << n;
  EXPECT_EQ(parse_error(b.data.substr(0, b.data.size() - padding_at_the_end)), "");
}

TEST(Gguf, AbsurdFieldsNeverCrashNorAllocate) {
  const Bytes b = small_file();
  int errors = 0, tried = 0;
  for (const auto& field : b.fields)
    for (uint64_t value :
         {uint64_t(0), uint64_t(1), uint64_t(2), uint64_t(8), uint64_t(9), uint64_t(13),
          uint64_t(0x7F), uint64_t(0xFF), uint64_t(0xFFFF), uint64_t(0x7FFFFFFF),
          uint64_t(0xFFFFFFFF), uint64_t(1) << 32, uint64_t(1) << 60, (uint64_t(1) << 61) + 1,
          uint64_t(1) << 62, uint64_t(1) << 63, UINT64_MAX - 7, UINT64_MAX}) {
      std::string data = b.data;
      std::memcpy(data.data() + field.offset, &value, field.width);
      std::string error = parse_error(data);
      ++tried;
      if (error.empty()) continue;
      ++errors;
      ASSERT_TRUE(fails_with(data, "")) << field.label << " = " << value;
    }
  EXPECT_GT(errors, tried / 3);
}

TEST(Gguf, EveryByteChangedNeverCrashes) {
  const Bytes b = small_file();
  for (size_t i = 0; i < b.data.size(); ++i)
    for (int change : {0x01, 0x80, 0xFF}) {
      std::string data = b.data;
      data[i] = char(data[i] ^ change);
      std::string error = parse_error(data);
      if (!error.empty()) {
        ASSERT_TRUE(error.starts_with("f.gguf: gguf: ")) << error;
      }
    }
}

TEST(Gguf, NamedMistakesSayWhatIsWrong) {
  const Bytes b = small_file();
  const uint64_t huge = uint64_t(1) << 60;
  auto replaced = [&](const std::string& from, const std::string& to) {
    std::string data = b.data;
    return data.replace(data.find(from), from.size(), to);
  };
  EXPECT_TRUE(fails_with("GGML" + b.data.substr(4), "magic: expected 'GGUF', found 'GGML'"));
  EXPECT_TRUE(fails_with("FUGG" + b.data.substr(4), "big-endian"));
  EXPECT_TRUE(fails_with(with<uint32_t>(b, "version", 0x03000000), "big-endian"));
  EXPECT_TRUE(fails_with(with<uint32_t>(b, "version", 1), "expected 2 or 3, found 1"));
  EXPECT_TRUE(fails_with(with(b, "tensors", huge), "tensor count: expected at most"));
  EXPECT_TRUE(fails_with(with(b, "pairs", huge), "key-value count: expected at most"));
  EXPECT_TRUE(fails_with(with(b, "a.string value length", huge),
                         "metadata 'a.string': expected 1152921504606846976 bytes"));
  EXPECT_TRUE(fails_with(with(b, "b.i16 count", huge + 1), "metadata 'b.i16'"));
  EXPECT_TRUE(fails_with(with<uint32_t>(b, "b.i16 element", 9), "found an array of arrays"));
  EXPECT_TRUE(fails_with(with<uint32_t>(b, "a.u8 type", 13), "value type of 0 to 12, found 13"));
  EXPECT_TRUE(fails_with(with<uint8_t>(b, "a.bool value", 2), "boolean of 0 or 1, found 2"));
  EXPECT_TRUE(fails_with(replaced("a.u16", "a.i16"), "'a.i16' twice"));
  EXPECT_TRUE(
      fails_with(replaced("a.u16", "a.\xC0\xAF!"), "expected UTF-8, found 'a.\\xc0\\xaf!'"));
  EXPECT_TRUE(fails_with(with<uint32_t>(b, "alignment", 48), "power of two"));
  EXPECT_TRUE(fails_with(with<uint32_t>(b, "alignment", 0), "power of two"));
  EXPECT_TRUE(fails_with(with<uint32_t>(b, "alignment", 1u << 31), "power of two"));
  EXPECT_TRUE(fails_with(with<uint32_t>(b, "general.alignment type", 5), "expected a u32"));
  EXPECT_TRUE(fails_with(with<uint32_t>(b, "q dims", 5), "1 to 4 dimensions, found 5"));
  EXPECT_TRUE(fails_with(with<uint32_t>(b, "q dims", 0), "1 to 4 dimensions, found 0"));
  EXPECT_TRUE(fails_with(with<int64_t>(b, "q dim 1", 0), "dimension 1 of at least 1, found 0"));
  EXPECT_TRUE(fails_with(with<int64_t>(b, "q dim 1", -3), "dimension 1 of at least 1, found -3"));
  EXPECT_TRUE(fails_with(with<int64_t>(b, "q dim 0", 40), "rows of a multiple of 32 for Q4_0"));
  EXPECT_TRUE(fails_with(with<int64_t>(b, "q dim 1", INT64_MAX), "product overflows"));
  EXPECT_TRUE(fails_with(with<int64_t>(b, "h dim 3", INT64_MAX / 6), "product overflows"));
  EXPECT_TRUE(fails_with(with<uint32_t>(b, "q type", 4), "found 4 (Q4_2, withdrawn"));
  EXPECT_TRUE(fails_with(with<uint32_t>(b, "q type", 137), "found 137 (newer"));
  EXPECT_TRUE(fails_with(with<uint64_t>(b, "q offset", 64), "tensor 'q': expected offset 32"));
  EXPECT_TRUE(fails_with(with<uint64_t>(b, "h offset", 0), "tensor 'h': expected offset 160"));
  EXPECT_TRUE(fails_with(with<int64_t>(b, "h dim 3", 4000), "tensor 'h': expected 48000 bytes"));
  std::string twice = b.data;
  twice[b.at("h dims") - 1] = 'q';
  EXPECT_TRUE(fails_with(twice, "'q' twice"));
}

TEST(Gguf, WriterRefusesWhatTheReaderWould) {
  TempFolder folder;
  auto nothing = [](const auto&) {};
  auto error = [&](std::vector<std::pair<std::string, MetaValue>> meta,
                   std::vector<TensorSource> tensors) {
    return error_of([&] { write_gguf(folder / "o.gguf", meta, tensors); });
  };
  EXPECT_NE(error({{"k", {1u}}, {"k", {2u}}}, {}).find("'k' twice"), std::string::npos);
  EXPECT_NE(error({{"general.alignment", {48u}}}, {}).find("power of two"), std::string::npos);
  EXPECT_NE(error({}, {{"t", {2, 33}, Dtype::Q4_0, nothing}}).find("multiple of 32"),
            std::string::npos);
  EXPECT_NE(error({}, {{std::string(64, 'n'), {1}, Dtype::F32, nothing}}).find("1 to 63 bytes"),
            std::string::npos);
  EXPECT_NE(error({}, {{"t", {1, 1, 1, 1, 1}, Dtype::F32, nothing}}).find("dimensions"),
            std::string::npos);
  EXPECT_NE(error({}, {{"t", {INT64_MAX, 2}, Dtype::F32, nothing}}).find("overflows"),
            std::string::npos);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Gguf, ProduceThatWritesTooLittleIsABrokenInvariant) {
  TempFolder folder;
  std::vector<TensorSource> tensors = {
      {"t", {4}, Dtype::F32, [](const auto& write) { write(std::vector<std::byte>(12)); }}};
  EXPECT_DEATH(write_gguf(folder / "o.gguf", {}, tensors), "exactly the tensor's bytes");
}

TEST(Gguf, LookupsOfManyNamesStayFast) {
  // 60,000 keys: a duplicate check by comparing all pairs would take minutes.
  std::vector<std::pair<std::string, MetaValue>> metadata;
  for (int i = 0; i < 60000; ++i) metadata.push_back({"key." + std::to_string(i), {uint8_t(1)}});
  TempFolder folder;
  write_gguf(folder / "o.gguf", metadata, {});
  EXPECT_EQ(read_gguf(folder / "o.gguf").metadata.size(), 60000u);
}

TEST(GgufSplit, PartsAreOneFile) {
  TempFolder folder;
  TensorFile f = parse_gguf("f.gguf", share(small_file().data));
  auto part = [&](int i, std::vector<size_t> which, int n_parts, int n_tensors) {
    std::vector<std::pair<std::string, MetaValue>> meta;
    if (i == 0) meta = f.metadata;
    meta.push_back({"split.no", {uint16_t(i)}});
    meta.push_back({"split.count", {uint16_t(n_parts)}});
    meta.push_back({"split.tensors.count", {int32_t(n_tensors)}});
    std::vector<Tensor> tensors;
    for (size_t w : which) tensors.push_back(f.tensors[w]);
    write_gguf(folder / fmt::format("m-{:05}-of-00002.gguf", i + 1), meta, sources(tensors));
  };
  auto open = [&] { return open_model_file(folder / "m-00001-of-00002.gguf"); };
  part(0, {0, 1}, 2, 3);
  EXPECT_NE(error_of(open).find("m-00002-of-00002.gguf"), std::string::npos);
  part(1, {2}, 2, 3);
  TensorFile whole = open();
  ASSERT_EQ(whole.tensors.size(), 3u);
  EXPECT_EQ(whole.tensors[2].name, "h");
  EXPECT_EQ(whole.tensors[2].data.bytes[5], f.tensors[2].data.bytes[5]);
  EXPECT_EQ(whole.metadata.size(), f.metadata.size());
  EXPECT_EQ(open_model_file(folder / "m-00002-of-00002.gguf").tensors.size(), 3u);

  part(1, {1}, 2, 3);
  EXPECT_NE(error_of(open).find("'q' twice"), std::string::npos);
  part(1, {2}, 3, 3);
  EXPECT_NE(error_of(open).find("'split.count': expected 2, found 3"), std::string::npos);
  part(1, {2}, 2, 3);
  part(0, {0}, 2, 3);
  EXPECT_NE(error_of(open).find("expected 2 (as the parts hold), found 3"), std::string::npos);
  std::filesystem::rename(folder / "m-00001-of-00002.gguf", folder / "renamed.gguf");
  EXPECT_NE(error_of([&] { open_model_file(folder / "renamed.gguf"); }).find("part of a set"),
            std::string::npos);
}

}  // namespace
}  // namespace mt
