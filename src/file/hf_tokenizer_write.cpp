#include <algorithm>
#include <unordered_map>

#include "base/error.h"
#include "base/files.h"
#include "file/hf_tokenizer.h"
#include "file/names.h"
#include "file/sentencepiece.h"

namespace mt {
namespace {

using Json = nlohmann::ordered_json;

struct Export {
  const TensorFile& file;
  const MetaValue::Strings& tokens;
  std::vector<int32_t> types;
  std::vector<double> scores;

  explicit Export(const TensorFile& f) : file(f), tokens(need_tokens(f)) {
    for (double value : numbers("tokenizer.ggml.token_type", kNormal)) {
      const auto type = static_cast<int32_t>(value);
      if (type < kNormal || type > kByte)
        fail("tokenizer.ggml.token_type", "1 to 6", std::to_string(type));
      types.push_back(type);
    }
    scores = numbers("tokenizer.ggml.scores", 0);
    std::vector<std::string_view> names;
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (!is_utf8(tokens[i])) fail(fmt::format("token {}", i), "UTF-8", printable(tokens[i]));
      if (is_token(i)) names.push_back(tokens[i]);
    }
    if (auto twice = find_duplicate(std::move(names)))
      fail("tokens", "every token once", "'" + printable(*twice) + "' twice");
  }

  [[noreturn]] void fail(const std::string& what, const std::string& expected,
                         const std::string& found) const {
    throw_error("{}: tokenizer as a Hugging Face file: {}: expected {}, found {}", file.path, what,
                expected, found);
  }

  static const MetaValue::Strings& need_tokens(const TensorFile& f) {
    const auto* tokens = f.get_strings("tokenizer.ggml.tokens");
    if (!tokens) throw_error("{}: metadata 'tokenizer.ggml.tokens' is missing", f.path);
    return *tokens;
  }

  std::vector<double> numbers(const char* key, double fallback) const {
    auto values = file.get_numbers(key);
    if (!values) return std::vector<double>(tokens.size(), fallback);
    if (values->size() != tokens.size())
      fail(key, fmt::format("{} values, one a token", tokens.size()),
           std::to_string(values->size()));
    return *values;
  }

  // Not an id that no token has: such ones are left out, and come back as they were.
  bool is_token(size_t i) const {
    return types[i] != kUnused || tokens[i] != fmt::format("[PAD{}]", i);
  }

  Json vocab() const {
    Json vocab = Json::object();
    auto& entries = vocab.get_ref<Json::object_t&>();  // operator[] would search each time
    for (size_t i = 0; i < tokens.size(); ++i)
      if (is_token(i)) entries.push_back({tokens[i], i});
    return vocab;
  }

  Json added_tokens() const {
    Json list = Json::array();
    for (size_t i = 0; i < tokens.size(); ++i)
      if (types[i] == kControl || types[i] == kUserDefined || types[i] == kUnknown)
        list.push_back({{"id", i},
                        {"content", tokens[i]},
                        {"single_word", false},
                        {"lstrip", false},
                        {"rstrip", false},
                        {"normalized", false},
                        {"special", types[i] != kUserDefined}});
    return list;
  }

  std::optional<size_t> id_of(std::string_view key) const {
    auto id = file.get_int(key);
    if (!id) return std::nullopt;
    if (*id < 0 || *id >= static_cast<int64_t>(tokens.size()))
      fail(std::string(key), fmt::format("an id below {}", tokens.size()), std::to_string(*id));
    return static_cast<size_t>(*id);
  }

  Json post_processor(bool adds_bos, bool adds_eos, Json otherwise) const {
    auto bos = id_of("tokenizer.ggml.bos_token_id"), eos = id_of("tokenizer.ggml.eos_token_id");
    adds_bos = adds_bos && bos;
    adds_eos = adds_eos && eos;
    if (!adds_bos && !adds_eos) return otherwise;
    Json specials = Json::object(), single = Json::array(), pair = Json::array();
    auto special = [&](size_t id, int type, Json& into) {
      into.push_back({{"SpecialToken", {{"id", tokens[id]}, {"type_id", type}}}});
      specials[tokens[id]] = {
          {"id", tokens[id]}, {"ids", Json::array({id})}, {"tokens", Json::array({tokens[id]})}};
    };
    auto text = [](const char* id, int type, Json& into) {
      into.push_back({{"Sequence", {{"id", id}, {"type_id", type}}}});
    };
    for (int type : {0, 1}) {
      if (adds_bos) special(*bos, type, pair);
      text(type ? "B" : "A", type, pair);
      if (adds_eos) special(*eos, type, pair);
      if (type == 0) single = pair;
    }
    return {{"type", "TemplateProcessing"},
            {"single", single},
            {"pair", pair},
            {"special_tokens", specials}};
  }

  // Every way in which two tokens join to a third, best score first: what SentencePiece does by
  // score, done by rank.
  Json merges_by_score() const {
    std::unordered_map<std::string_view, size_t> ids;
    for (size_t i = 0; i < tokens.size(); ++i)
      if (types[i] == kNormal) ids.emplace(tokens[i], i);
    struct Merge {
      size_t whole, left, right;
    };
    std::vector<Merge> merges;
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (types[i] != kNormal) continue;
      std::string_view text = tokens[i];
      for (size_t cut = 1; cut < text.size(); ++cut) {
        if ((static_cast<uint8_t>(text[cut]) & 0xC0) == 0x80) continue;  // inside a character
        auto left = ids.find(text.substr(0, cut)), right = ids.find(text.substr(cut));
        if (left != ids.end() && right != ids.end())
          merges.push_back({i, left->second, right->second});
      }
    }
    std::sort(merges.begin(), merges.end(), [&](const Merge& a, const Merge& b) {
      if (scores[a.whole] != scores[b.whole]) return scores[a.whole] > scores[b.whole];
      return std::tuple(a.whole, a.left, a.right) < std::tuple(b.whole, b.left, b.right);
    });
    Json list = Json::array();
    for (const Merge& m : merges) list.push_back(Json::array({tokens[m.left], tokens[m.right]}));
    return list;
  }

  Json byte_level() const {
    const std::string pre = file.get_string("tokenizer.ggml.pre").value_or("none");
    const PreTokenizer* known = find_pre_tokenizer(pre);
    if (!known) fail("tokenizer.ggml.pre", pre_tokenizer_names(), "'" + printable(pre) + "'");
    const auto* merges = file.get_strings("tokenizer.ggml.merges");
    if (!merges) fail("tokenizer.ggml.merges", "merges", "none");
    const Json bytes = {{"type", "ByteLevel"},
                        {"add_prefix_space", false},
                        {"trim_offsets", false},
                        {"use_regex", false}};
    return tokenizer(
        Json::parse(known->normalizer), Json::parse(known->json),
        post_processor(flag("add_bos_token", known->adds_bos), flag("add_eos_token", false), bytes),
        bytes,
        {{"type", "BPE"},
         {"dropout", nullptr},
         {"unk_token", nullptr},
         {"continuing_subword_prefix", nullptr},
         {"end_of_word_suffix", nullptr},
         {"fuse_unk", false},
         {"byte_fallback", false},
         {"ignore_merges", known->ignore_merges},
         {"vocab", vocab()},
         {"merges", *merges}});
  }

  Json sentence_piece() const {
    const bool prefix = flag("add_space_prefix", true);
    const Json space = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kLowLine}};
    Json normalizer = space;
    Json decoders =
        Json::array({{{"type", "Replace"}, {"pattern", {{"String", kLowLine}}}, {"content", " "}},
                     {{"type", "ByteFallback"}},
                     {{"type", "Fuse"}}});
    if (prefix) {
      normalizer = {
          {"type", "Sequence"},
          {"normalizers", Json::array({Json{{"type", "Prepend"}, {"prepend", kLowLine}}, space})}};
      decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    }
    Json unknown = nullptr;
    for (size_t i = 0; i < tokens.size(); ++i)
      if (types[i] == kUnknown) unknown = tokens[i];
    return tokenizer(
        normalizer, nullptr,
        post_processor(flag("add_bos_token", true), flag("add_eos_token", false), nullptr),
        {{"type", "Sequence"}, {"decoders", decoders}},
        {{"type", "BPE"},
         {"dropout", nullptr},
         {"unk_token", unknown},
         {"continuing_subword_prefix", nullptr},
         {"end_of_word_suffix", nullptr},
         {"fuse_unk", true},
         {"byte_fallback", true},
         {"ignore_merges", false},
         {"vocab", vocab()},
         {"merges", merges_by_score()}});
  }

  bool flag(const std::string& name, bool fallback) const {
    return file.get_bool("tokenizer.ggml." + name).value_or(fallback);
  }

  Json tokenizer(Json normalizer, Json pre, Json post, Json decoder, Json model) const {
    return {{"version", "1.0"},
            {"truncation", nullptr},
            {"padding", nullptr},
            {"added_tokens", added_tokens()},
            {"normalizer", std::move(normalizer)},
            {"pre_tokenizer", std::move(pre)},
            {"post_processor", std::move(post)},
            {"decoder", std::move(decoder)},
            {"model", std::move(model)}};
  }

  Json settings(Json& config) const {
    Json settings = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                     {"clean_up_tokenization_spaces", false}};
    for (const auto& token : kSpecialTokens) {
      auto id = id_of(token.gguf);
      if (!id) continue;
      // The text is looked up among the added tokens; the id serves where it is not one of them.
      settings[std::string(token.hf) + "_token"] = tokens[*id];
      config[std::string(token.hf) + "_token_id"] = *id;
    }
    for (auto name : {"add_bos_token", "add_eos_token", "add_sep_token"})
      if (auto set = file.get_bool(std::string("tokenizer.ggml.") + name)) settings[name] = *set;
    if (auto set = file.get_bool("tokenizer.ggml.add_space_prefix"))
      settings["add_prefix_space"] = *set;
    if (auto text = file.get_string("tokenizer.chat_template")) settings["chat_template"] = *text;
    return settings;
  }

  std::string pieces() const {
    SentencePieceModel model;
    model.model_type = 2;
    model.add_dummy_prefix = flag("add_space_prefix", true);
    for (size_t i = 0; i < tokens.size(); ++i)
      model.pieces.push_back(
          {tokens[i], static_cast<float>(scores[i]), static_cast<int>(types[i])});
    return write_sentencepiece(model);
  }
};

void write_text(const std::filesystem::path& path, const std::string& text) {
  AtomicFile out(path);
  out.write(text);
  out.commit();
}

}  // namespace

void write_hf_tokenizer(const std::filesystem::path& folder, const TensorFile& file,
                        nlohmann::ordered_json& config) {
  const Export e(file);
  const std::string model = file.need_string("tokenizer.ggml.model");
  if (model != "gpt2" && model != "llama")
    e.fail("tokenizer.ggml.model", "gpt2 or llama", "'" + printable(model) + "'");
  const Json tokenizer = model == "gpt2" ? e.byte_level() : e.sentence_piece();
  if (model == "llama") write_text(folder / "tokenizer.model", e.pieces());
  write_text(folder / "tokenizer.json",
             tokenizer.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  write_text(
      folder / "tokenizer_config.json",
      e.settings(config).dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

}  // namespace mt
