#include "file/safetensors.h"

#include <gtest/gtest.h>

#include "file/bytes.h"
#include "file/json.h"

namespace mt {
namespace {

using namespace test;

std::string file_of(const std::string& header, size_t data_bytes) {
  uint64_t n = header.size();
  std::string data(reinterpret_cast<const char*>(&n), 8);
  data += header;
  for (size_t i = 0; i < data_bytes; ++i) data += char(i);
  return data;
}

const std::string kHeader = R"({"__metadata__":{"format":"pt"},)"
                            R"("b.weight":{"dtype":"F16","shape":[2,3],"data_offsets":[16,28]},)"
                            R"("a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
                            R"("scalar":{"data_offsets":[28,36],"dtype":"I64","shape":[]},)"
                            R"("none":{"dtype":"BF16","shape":[0,4],"data_offsets":[36,36]}})";

std::string parse_error(const std::string& data) {
  SharedBytes bytes = share(data);
  return error_of([&] { parse_safetensors("f.st", bytes); }, 40 * data.size() + 16384);
}

testing::AssertionResult fails_with(const std::string& data, const std::string& text) {
  std::string error = parse_error(data);
  if (error.empty()) return testing::AssertionFailure() << "no error";
  if (!error.starts_with("f.st: safetensors: ") || error.find(": expected ") == std::string::npos ||
      error.find(", found ") == std::string::npos)
    return testing::AssertionFailure() << "lacks file, expected or found: " << error;
  if (error.find(text) == std::string::npos)
    return testing::AssertionFailure() << "'" << text << "' is not in: " << error;
  return testing::AssertionSuccess();
}

TEST(Safetensors, ReadsInTheOrderOfTheData) {
  TensorFile f = parse_safetensors("f.st", share(file_of(kHeader, 36)));
  ASSERT_EQ(f.tensors.size(), 4u);
  EXPECT_EQ(f.get_string("format"), "pt");
  EXPECT_EQ(f.tensors[0].name, "a");
  EXPECT_EQ(f.tensors[1].name, "b.weight");
  EXPECT_EQ(f.tensors[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(f.tensors[1].dtype, Dtype::F16);
  EXPECT_EQ(f.tensors[1].data.bytes[0], std::byte(16));
  EXPECT_TRUE(f.tensors[2].shape.empty());
  EXPECT_EQ(f.tensors[2].data.bytes.size(), 8u);
  EXPECT_EQ(f.tensors[3].data.bytes.size(), 0u);
}

TEST(Safetensors, TruncatedAnywhereIsAnError) {
  const std::string data = file_of(kHeader, 36);
  for (size_t n = 0; n < data.size(); ++n) ASSERT_TRUE(fails_with(data.substr(0, n), "")) << n;
}

TEST(Safetensors, EveryByteChangedNeverCrashes) {
  const std::string data = file_of(kHeader, 36);
  for (size_t i = 0; i < data.size(); ++i)
    for (int change : {0x01, 0x02, 0x10, 0x80, 0xFF}) {
      std::string other = data;
      other[i] = char(other[i] ^ change);
      std::string error = parse_error(other);
      if (!error.empty()) {
        ASSERT_TRUE(error.starts_with("f.st: safetensors: ")) << error;
      }
    }
}

TEST(Safetensors, NamedMistakesSayWhatIsWrong) {
  auto tensor = [](const std::string& fields) { return file_of("{\"t\":{" + fields + "}}", 8); };
  EXPECT_EQ(parse_error(tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8])")), "");
  EXPECT_TRUE(fails_with(tensor(R"("dtype":"F31","shape":[2],"data_offsets":[0,8])"),
                         "tensor 't': expected a dtype of F32 F16"));
  EXPECT_TRUE(fails_with(tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"),
                         "expected 8 bytes for its shape and dtype, found data_offsets 0 to 4"));
  EXPECT_TRUE(fails_with(tensor(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"),
                         "no hole, no overlap"));
  EXPECT_TRUE(fails_with(tensor(R"("dtype":"F32","shape":[4],"data_offsets":[0,16])"),
                         "expected data up to 16, found 8 bytes"));
  EXPECT_TRUE(fails_with(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])"),
                         "data: expected 4 bytes, as the header says, found 8"));
  EXPECT_TRUE(
      fails_with(tensor(R"("dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,8])"),
                 "product overflows"));
  EXPECT_TRUE(fails_with(tensor(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), "found -2"));
  EXPECT_TRUE(
      fails_with(tensor(R"("dtype":"F32","shape":[2.5],"data_offsets":[0,8])"), "found 2.5"));
  EXPECT_TRUE(
      fails_with(tensor(R"("dtype":"F32","shape":[1e400],"data_offsets":[0,8])"), "expected"));
  EXPECT_TRUE(
      fails_with(tensor(R"("dtype":"F32","shape":[[2]],"data_offsets":[0,8])"), "found an array"));
  EXPECT_TRUE(fails_with(tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,8,9])"), "third"));
  EXPECT_TRUE(fails_with(tensor(R"("dtype":"F32","shape":[2])"), "found fewer"));
  EXPECT_TRUE(fails_with(tensor(R"("dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8])"),
                         "'dtype' twice"));
  EXPECT_TRUE(
      fails_with(tensor(R"("type":"F32","shape":[2],"data_offsets":[0,8])"), "found 'type'"));
  EXPECT_TRUE(fails_with(file_of(R"({"t":5})", 0), "expected an object with dtype"));
  EXPECT_TRUE(fails_with(file_of(R"([1])", 0), "expected an object, found an array"));
  EXPECT_TRUE(fails_with(file_of(R"({"__metadata__":{"a":1}})", 0), "an object of strings"));
  EXPECT_TRUE(fails_with(file_of(R"({"__metadata__":{"a":"1","a":"2"}})", 0), "'a' twice"));
  EXPECT_TRUE(fails_with(file_of("{} x", 0), "JSON"));
  EXPECT_TRUE(fails_with(file_of("{\"\xC0\xAF\":1}", 0), "JSON"));
  EXPECT_TRUE(fails_with(file_of(std::string(100000, '['), 0), "an object, found an array"));
  const std::string t = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  EXPECT_TRUE(fails_with(file_of("{\"t\":" + t + ",\"t\":" + t + "}", 8), "'t' twice"));
  EXPECT_TRUE(fails_with(file_of("{\"t\":" + t + ",\"u\":" + t + "}", 8), "no overlap"));
  for (uint64_t n : {uint64_t(1) << 60, UINT64_MAX, uint64_t(1) << 33}) {
    std::string data = file_of(kHeader, 36);
    std::memcpy(data.data(), &n, 8);
    EXPECT_TRUE(fails_with(data, "header: expected " + std::to_string(n) + " bytes at byte 8"));
  }
}

TEST(Safetensors, RoundTripKeepsBytesAndAlignsElements) {
  TempFolder folder;
  TensorFile f = parse_safetensors("f.st", share(file_of(kHeader, 36)));
  f.tensors.pop_back();  // the empty one: this writer has no use for it
  write_safetensors(folder / "o.safetensors", {{"format", "pt"}}, sources(f.tensors));
  TensorFile r = read_safetensors(folder / "o.safetensors");
  EXPECT_EQ(r.get_string("format"), "pt");
  ASSERT_EQ(r.tensors.size(), 3u);
  EXPECT_EQ(r.tensors[0].name, "scalar");  // 8 bytes an element, then 4, then 2
  for (const Tensor& t : r.tensors) {
    const Tensor* original = f.find_tensor(t.name);
    ASSERT_TRUE(original) << t.name;
    EXPECT_EQ(t.shape, original->shape);
    EXPECT_EQ(t.dtype, original->dtype);
    EXPECT_TRUE(std::equal(t.data.bytes.begin(), t.data.bytes.end(), original->data.bytes.begin(),
                           original->data.bytes.end()));
    EXPECT_EQ(
        reinterpret_cast<uintptr_t>(t.data.bytes.data()) % uintptr_t(info(t.dtype).block_bytes),
        0u);
  }
  write_safetensors(folder / "p.safetensors", {{"format", "pt"}}, sources(r.tensors));
  EXPECT_EQ(read_all(folder / "p.safetensors"), read_all(folder / "o.safetensors"));
}

TEST(Safetensors, ShardsAreOneFileAndStayInTheFolder) {
  TempFolder folder;
  auto shard = [](const std::string& name) {
    return file_of("{\"" + name + R"(":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  };
  auto index = [&](const std::string& map) {
    write_all(folder / "model.safetensors.index.json", "{\"weight_map\":" + map + "}");
    return error_of([&] { read_safetensors(folder / "model.safetensors.index.json"); });
  };
  write_all(folder / "1.safetensors", shard("a"));
  write_all(folder / "2.safetensors", shard("b"));
  EXPECT_EQ(index(R"({"a":"1.safetensors","b":"2.safetensors"})"), "");
  EXPECT_EQ(read_safetensors(folder / "model.safetensors.index.json").tensors[1].name, "b");
  for (std::string out : {"../1.safetensors", "/etc/passwd", "..", ".", "", "a/../1.safetensors"})
    EXPECT_NE(index("{\"a\":\"" + out + "\"}").find("inside the folder"), std::string::npos) << out;
  EXPECT_NE(index(R"({"a":"2.safetensors","b":"1.safetensors"})").find("weight_map places there"),
            std::string::npos);
  EXPECT_NE(index(R"({"a":"1.safetensors","c":"1.safetensors"})").find("2 tensors, found 1"),
            std::string::npos);
  EXPECT_NE(index(R"({"a":"1.safetensors","a":"2.safetensors"})").find("every key once"),
            std::string::npos);
  EXPECT_NE(index(R"({"a":7})").find("expected a file name"), std::string::npos);
  EXPECT_NE(index("[]").find("an object of tensor names"), std::string::npos);
  EXPECT_NE(index(R"({"a":"3.safetensors"})").find("cannot be opened"), std::string::npos);
}

TEST(Json, DeepAndDoubledAreErrors) {
  auto error = [](const std::string& text) {
    return error_of([&] { parse_json("c.json", text); });
  };
  EXPECT_EQ(error(R"({"a":[{"b":1},{"b":2}]})"), "");
  EXPECT_NE(error(std::string(100000, '[')).find("at most 64 levels"), std::string::npos);
  EXPECT_NE(error(R"({"x":{"a":1,"a":2}})").find("every key once"), std::string::npos);
  EXPECT_NE(error("{").find("c.json: json: expected JSON"), std::string::npos);
  auto json = parse_json("c.json", R"({"a":[{"b":1},null]})");
  ASSERT_TRUE(find_json(json, "/a/0/b"));
  EXPECT_EQ(*find_json(json, "/a/0/b"), 1);
  for (auto pointer : {"/a/1", "/a/2", "/a/x", "/b", "/a/0/b/c", "/a/"})
    EXPECT_FALSE(find_json(json, pointer)) << pointer;
}

}  // namespace
}  // namespace mt
