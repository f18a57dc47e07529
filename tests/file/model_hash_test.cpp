#include "file/model_hash.h"

#include <gtest/gtest.h>

#include "base/files.h"
#include "support/folder.h"

namespace mt {
namespace {

TEST(ModelHash, EveryPartOfASetCounts) {
  test::TemporaryFolder folder;
  const auto one = folder / "m-00001-of-00002.gguf", two = folder / "m-00002-of-00002.gguf";
  test::write_bytes(one, "one");
  test::write_bytes(two, "two");
  const std::string before = model_sha256(one);
  EXPECT_EQ(model_sha256(two), before);
  EXPECT_EQ(model_files(two), (std::vector<std::filesystem::path>{one, two}));
  test::write_bytes(two, "other");
  EXPECT_NE(model_sha256(one), before);
}

TEST(ModelHash, AFileOfItsOwnIsItsBytes) {
  test::TemporaryFolder folder;
  test::write_bytes(folder / "m.gguf", "bytes");
  EXPECT_EQ(model_sha256(folder / "m.gguf"), sha256_hex(std::string("bytes")));
}

TEST(ModelHash, AFoldersVocabularyCounts) {
  test::TemporaryFolder folder;
  test::write_bytes(folder / "model.safetensors", "tensors");
  test::write_bytes(folder / "config.json", "{}");
  const std::string before = model_sha256(folder.path());
  EXPECT_EQ(model_sha256(folder / "model.safetensors"), before);
  test::write_bytes(folder / "readme.md", "words");
  EXPECT_EQ(model_sha256(folder.path()), before);
  test::write_bytes(folder / "tokenizer.model", "pieces");
  EXPECT_NE(model_sha256(folder.path()), before);
}

}  // namespace
}  // namespace mt
