#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/files.h"
#include "file/open.h"
#include "text/vocabulary.h"

namespace mt {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

fs::path models_folder() {
  const char* folder = std::getenv("MICROTOME_MODELS");
  return folder && *folder ? fs::path(folder) : fs::path(MT_SOURCE_DIR) / "models";
}
json golden(const char* name) {
  return json::parse(read_text_file(fs::path(MT_TEST_DATA) / name));
}

// [number, SHA-256 of the bytes], as tools/goldens/make_tokenizer_goldens.py writes it.
json digest(const std::vector<int32_t>& ids) {
  std::string bytes;
  for (const int32_t id : ids)
    for (int shift = 0; shift < 32; shift += 8)
      bytes.push_back(static_cast<char>(static_cast<uint32_t>(id) >> shift & 0xFF));
  return json::array({ids.size(), sha256_hex(bytes)});
}

// The models are large: fetched by `make test` (SmolLM2) and tools/fetch_models.py, if at all.
class SlowReference : public testing::TestWithParam<const char*> {};

TEST_P(SlowReference, TokensOfEveryText) {
  const json model = golden("tokenizer_ids.json").at(GetParam());
  const fs::path path = models_folder() / model.at("file").get<std::string>();
  if (!fs::exists(path)) GTEST_SKIP() << path << " is not there";
  const auto tokenizer = Tokenizer::open(open_model_file(path));
  const json texts = golden("tokenizer_texts.json");
  ASSERT_GE(texts.size(), 50u);
  for (const auto& [name, text] : texts.items()) {
    const json& expected = model.at("ids").at(name);
    for (const bool special : {false, true}) {
      const auto ids = tokenizer->encode(text.get<std::string>(), special);
      EXPECT_EQ(digest(ids), expected.at(special && expected.size() > 1 ? 1 : 0))
          << GetParam() << ", '" << name << "', special " << special;
    }
  }
}

// Byte-level and byte-fallback vocabularies lose nothing, save that SentencePiece writes spaces as
// U+2581 and cannot tell them from that character.
TEST_P(SlowReference, DecodingGivesTheTextBack) {
  if (GetParam() == std::string("minilm")) GTEST_SKIP() << "WordPiece normalises";
  const json model = golden("tokenizer_ids.json").at(GetParam());
  const fs::path path = models_folder() / model.at("file").get<std::string>();
  if (!fs::exists(path)) GTEST_SKIP() << path << " is not there";
  const auto tokenizer = Tokenizer::open(open_model_file(path));
  const json texts = golden("tokenizer_texts.json");
  for (const auto& [name, json_text] : texts.items()) {
    const auto text = json_text.get<std::string>();
    std::string decoded;
    Utf8Stream stream;
    for (const int32_t id : tokenizer->encode(text, true))
      decoded += stream.push(tokenizer->piece(id, true));
    decoded += stream.flush();
    if (GetParam() == std::string("gemma"))
      EXPECT_EQ(test::with_spaces(decoded), test::with_spaces(text)) << name;
    else
      EXPECT_EQ(decoded, text) << GetParam() << " " << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, SlowReference, testing::Values("smol", "gemma", "qwen", "minilm"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace mt
