#include "file/hf_tokenizer.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <unordered_map>

#include "base/error.h"
#include "base/files.h"
#include "file/json.h"
#include "file/names.h"
#include "file/sentencepiece.h"

namespace mt {
namespace {

using Json = nlohmann::json;

constexpr float kSpecialScore = -1000;   // of added tokens
constexpr float kPaddingScore = -10000;  // of ids that no token has

// Some models mark as ordinary what is a control token.
bool looks_special(std::string_view token) {
  auto framed = [&](std::string_view start, std::string_view end) {
    return token.size() >= start.size() + end.size() && token.starts_with(start) &&
           token.ends_with(end);
  };
  for (auto t : {"<pad>", "<mask>", "<2mass>", "[@BOS@]"})
    if (token == t) return true;
  return framed("<|", "|>") || framed("<\xEF\xBD\x9C", "\xEF\xBD\x9C>") || framed("<unused", ">");
}

std::string replace_all(std::string text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

struct AddedToken {
  int64_t id;
  std::string text;
  bool special;
};

// The parts of a folder's tokenizer while it is read.
class Import {
 public:
  Import(const std::filesystem::path& folder, const HfConfig& config, int64_t n_vocab,
         TensorFile& out)
      : folder_(folder), config_(config), n_vocab_(static_cast<size_t>(n_vocab)), out_(out) {
    auto optional = [&](const char* name) {
      return std::filesystem::exists(folder / name) ? read_json_file(folder / name) : Json();
    };
    file_ = (folder / "tokenizer.json").string();
    tokenizer_ = optional("tokenizer.json");
    settings_ = optional("tokenizer_config.json");
    read_added_tokens();
  }

  void run() {
    const bool has_pieces = std::filesystem::exists(folder_ / "tokenizer.model");
    if (tokenizer_.is_null() && !has_pieces)
      throw_error("{}: tokenizer: expected tokenizer.json or tokenizer.model, found neither",
                  folder_.string());
    const Json* fallback = find_json(tokenizer_, "/model/byte_fallback");
    if (has_pieces) {
      read_pieces();
    } else if (model_type() == "WordPiece") {
      read_word_pieces();
    } else if (model_type() == "BPE" && fallback && *fallback == true) {
      read_byte_fallback_bpe();
    } else if (model_type() == "BPE") {
      read_byte_level_bpe();
    } else {
      fail("model", "BPE or WordPiece", "'" + printable(model_type()) + "'");
    }
    read_template();
    add_special_tokens();
    add_chat_template();
  }

 private:
  [[noreturn]] void fail(const std::string& place, const std::string& expected,
                         const std::string& found) const {
    throw_error("{}: tokenizer: {}: expected {}, found {}", file_, place, expected, found);
  }

  std::string model_type() const {
    const Json* type = find_json(tokenizer_, "/model/type");
    if (type && type->is_string()) return type->get<std::string>();
    return find_json(tokenizer_, "/model/merges") ? "BPE" : "none";  // files before 2020
  }

  // tokenizer.json's list, in which tokenizer_config.json's may change what is special.
  void read_added_tokens() {
    std::map<int64_t, AddedToken> by_id;
    auto add = [&](int64_t id, const Json& token, const std::string& place) {
      const Json* text = find_json(token, "/content");
      const Json* special = find_json(token, "/special");
      if (!text || !text->is_string()) fail(place, "content, a string", "none");
      by_id[id] = {id, text->get<std::string>(), special && *special == true};
    };
    if (const Json* list = find_json(tokenizer_, "/added_tokens")) {
      if (!list->is_array()) fail("added_tokens", "an array", "another type");
      for (const Json& token : *list) {
        const Json* id = find_json(token, "/id");
        if (!id || !id->is_number_unsigned()) fail("added_tokens", "an id", "none");
        add(id->get<int64_t>(), token, "added_tokens");
        listed_.push_back(by_id[id->get<int64_t>()]);
      }
    }
    if (const Json* decoder = find_json(settings_, "/added_tokens_decoder"))
      for (const auto& [key, token] : decoder->items()) {
        if (key.empty() || key.size() > 9 ||
            key.find_first_not_of("0123456789") != std::string::npos)
          fail("added_tokens_decoder", "ids as keys", "'" + printable(key) + "'");
        add(std::stoll(key), token, "added_tokens_decoder");
        if (tokenizer_.is_null()) listed_.push_back(by_id[std::stoll(key)]);
      }
    for (auto& [id, token] : by_id) added_.push_back(std::move(token));
  }

  void start_vocabulary(TokenType padding) {
    tokens_.resize(n_vocab_);
    scores_.assign(n_vocab_, kPaddingScore);
    types_.assign(n_vocab_, padding);
    for (size_t i = 0; i < n_vocab_; ++i) tokens_[i] = fmt::format("[PAD{}]", i);
  }

  // model.vocab of BPE and WordPiece: {"token": id}.
  void read_vocab() {
    const Json* vocab = find_json(tokenizer_, "/model/vocab");
    if (!vocab || !vocab->is_object()) fail("model.vocab", "an object of ids", "none");
    start_vocabulary(kUnused);
    for (const auto& [token, id] : vocab->items()) {
      std::string place = "model.vocab '" + printable(token) + "'";
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= n_vocab_)
        fail(place, fmt::format("an id below {} (rows of the embedding)", n_vocab_),
             id.dump().substr(0, 40));
      const auto i = id.get<size_t>();
      if (types_[i] != kUnused) fail(place, "an id of its own", std::to_string(i) + " twice");
      tokens_[i] = token;
      types_[i] = kNormal;
    }
  }

  void overlay_added_tokens(bool drop_outside) {
    for (const auto& token : added_) {
      if (token.id >= static_cast<int64_t>(n_vocab_)) {
        if (drop_outside) continue;  // an image token that the text model has no row for
        fail("added_tokens '" + printable(token.text) + "'",
             fmt::format("an id below {} (rows of the embedding)", n_vocab_),
             std::to_string(token.id));
      }
      const auto i = static_cast<size_t>(token.id);
      const bool control = token.special || looks_special(token.text);
      tokens_[i] = control ? token.text : replace_all(token.text, kLowLine, " ");
      types_[i] = control ? kControl : kUserDefined;
      scores_[i] = kSpecialScore;
    }
  }

  std::vector<std::pair<std::string, std::string>> read_merges() const {
    const Json* merges = find_json(tokenizer_, "/model/merges");
    if (!merges || !merges->is_array()) fail("model.merges", "an array", "none");
    std::vector<std::pair<std::string, std::string>> pairs;
    for (const Json& merge : *merges) {
      if (merge.is_string()) {
        const auto& text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space == std::string::npos || space == 0 || space + 1 == text.size())
          fail(fmt::format("model.merges[{}]", pairs.size()), "two parts",
               "'" + printable(text) + "'");
        pairs.emplace_back(text.substr(0, space), text.substr(space + 1));
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
                 merge[1].is_string()) {
        pairs.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      } else {
        fail(fmt::format("model.merges[{}]", pairs.size()), "two parts",
             merge.dump().substr(0, 80));
      }
    }
    return pairs;
  }

  void put_vocabulary(const char* model, std::string_view pre, bool with_scores) {
    out_.set_meta("tokenizer.ggml.model", {std::string(model)});
    out_.set_meta("tokenizer.ggml.pre", {std::string(pre)});
    out_.set_meta("tokenizer.ggml.tokens", {tokens_});
    if (with_scores) out_.set_meta("tokenizer.ggml.scores", {scores_});
    out_.set_meta("tokenizer.ggml.token_type", {types_});
  }

  void read_byte_level_bpe() {
    const Json* pre = find_json(tokenizer_, "/pre_tokenizer");
    const PreTokenizer& known = recognise_pre_tokenizer(file_, pre ? *pre : Json());
    read_vocab();
    overlay_added_tokens(false);
    put_vocabulary("gpt2", known.name, false);
    // In GGUF a space divides the two parts; one inside a part is written as byte-level BPE
    // writes it, U+0120.
    MetaValue::Strings merges;
    for (auto& [left, right] : read_merges())
      merges.push_back(replace_all(left, " ", "\xC4\xA0") + " " +
                       replace_all(right, " ", "\xC4\xA0"));
    out_.set_meta("tokenizer.ggml.merges", {std::move(merges)});
    if (const Json* set = find_json(settings_, "/add_prefix_space"); set && set->is_boolean())
      out_.set_meta("tokenizer.ggml.add_space_prefix", {set->get<bool>()});
  }

  // SentencePiece merges by the score of what comes out, this form by the rank of the merge: the
  // score is less the place of the first merge that gives the token; then come what no merge gives.
  void read_byte_fallback_bpe() {
    read_vocab();
    std::unordered_map<std::string, size_t> rank;
    for (auto& [left, right] : read_merges()) rank.try_emplace(left + right, rank.size());
    std::vector<std::pair<size_t, size_t>> order;  // rank, id
    const Json* unknown = find_json(tokenizer_, "/model/unk_token");
    for (size_t i = 0; i < n_vocab_; ++i) {
      if (types_[i] != kNormal) continue;
      if (is_byte_token(tokens_[i])) {
        types_[i] = kByte;
        scores_[i] = 0;
      } else if (std::none_of(added_.begin(), added_.end(), [&](const AddedToken& t) {
                   return t.id == static_cast<int64_t>(i);
                 })) {
        auto found = rank.find(tokens_[i]);
        order.emplace_back(found == rank.end() ? SIZE_MAX : found->second, i);
      }
    }
    std::sort(order.begin(), order.end());
    for (size_t k = 0; k < order.size(); ++k) scores_[order[k].second] = -static_cast<float>(k);
    overlay_added_tokens(true);
    if (unknown && unknown->is_string())
      for (size_t i = 0; i < n_vocab_; ++i)
        if (tokens_[i] == *unknown) types_[i] = kUnknown;
    put_vocabulary("llama", "default", true);
    put_space_prefix(prepends_space());
  }

  static bool is_byte_token(std::string_view token) {
    return token.size() == 6 && token.starts_with("<0x") && token[5] == '>' &&
           std::isxdigit(static_cast<unsigned char>(token[3])) &&
           std::isxdigit(static_cast<unsigned char>(token[4]));
  }

  bool prepends_space() const {
    const Json* pre = find_json(tokenizer_, "/pre_tokenizer");
    if (const Json* scheme = pre ? find_json(*pre, "/prepend_scheme") : nullptr)
      return *scheme != "never";
    std::string normalizer =
        tokenizer_.contains("normalizer") ? tokenizer_["normalizer"].dump() : std::string();
    return normalizer.find("\"Prepend\"") != std::string::npos ||
           (pre && find_json(*pre, "/type") && *find_json(*pre, "/type") == "Metaspace");
  }

  void put_space_prefix(bool prefix) {
    if (const Json* set = find_json(settings_, "/add_prefix_space"); set && set->is_boolean())
      prefix = set->get<bool>();
    out_.set_meta("tokenizer.ggml.add_space_prefix", {prefix});
  }

  void read_pieces() {
    const auto path = folder_ / "tokenizer.model";
    SentencePieceModel model = parse_sentencepiece(path.string(), read_text_file(path));
    if (model.model_type != 2)
      throw_error("{}: sentencepiece: model type: expected 2 (BPE), found {}", path.string(),
                  model.model_type);
    start_vocabulary(kUnused);
    for (size_t i = 0; i < std::min(model.pieces.size(), n_vocab_); ++i) {
      tokens_[i] = model.pieces[i].text;
      scores_[i] = model.pieces[i].score;
      types_[i] = model.pieces[i].type;
    }
    // As the converter does: here only tokenizer_config.json changes tokens.
    if (find_json(settings_, "/added_tokens_decoder")) overlay_added_tokens(true);
    put_vocabulary("llama", "default", true);
    put_space_prefix(model.add_dummy_prefix);
  }

  void read_word_pieces() {
    const Json* prefix = find_json(tokenizer_, "/model/continuing_subword_prefix");
    if (prefix && *prefix != "##") fail("model.continuing_subword_prefix", "'##'", prefix->dump());
    read_vocab();
    overlay_added_tokens(false);
    for (size_t i = 0; i < n_vocab_; ++i) {
      if (types_[i] == kControl) continue;
      tokens_[i] =
          tokens_[i].starts_with("##") ? tokens_[i].substr(2) : std::string(kLowLine) + tokens_[i];
    }
    put_vocabulary("bert", "jina-v2-en", false);
    for (auto [hf, gguf] : {std::pair("/normalizer/lowercase", "lowercase"),
                            std::pair("/normalizer/strip_accents", "strip_accents")})
      if (const Json* flag = find_json(tokenizer_, hf); flag && flag->is_boolean())
        out_.set_meta(std::string("tokenizer.ggml.normalizer.") + gguf, {flag->get<bool>()});
  }

  // "bos_token": "<s>" or {"content": "<s>"}.
  std::string special_text(std::string_view name) const {
    const Json* v = find_json(settings_, fmt::format("/{}_token", name));
    if (v && v->is_object()) v = find_json(*v, "/content");
    return v && v->is_string() ? v->get<std::string>() : std::string();
  }

  // Which special tokens stand around a text, told from the template of the post-processor.
  void read_template() {
    for (const auto& token : kSpecialTokens) special_[token.hf] = special_text(token.hf);
    const std::string cls = special_text("cls");
    if (special_["bos"].empty()) special_["bos"] = cls;
    if (special_["eos"].empty()) special_["eos"] = special_["sep"];
    const Json* post = find_json(tokenizer_, "/post_processor");
    if (!post) return;
    const Json* list = find_json(*post, "/processors");
    const Json alone = list ? Json() : Json::array({*post});
    for (const Json& step : list ? *list : alone) {
      const Json* type = find_json(step, "/type");
      if (!type || *type != "TemplateProcessing") continue;
      const Json* single = find_json(step, "/single");
      if (!single || !single->is_array() || single->size() < 2) continue;
      auto id_of = [](const Json& part) {
        const Json* id = find_json(part, "/SpecialToken/id");
        return id && id->is_string() ? id->get<std::string>() : std::string();
      };
      const std::string first = id_of(single->front()), last = id_of(single->back());
      if (!first.empty()) {
        if (special_["bos"].empty()) special_["bos"] = first;
        flags_["bos"] = first == special_["bos"] || first == cls;
      }
      if (!last.empty()) {
        if (last != special_["eos"]) special_["eot"] = std::exchange(special_["eos"], last);
        flags_["eos"] = true;
      }
      read_pair_template(step, first, last, id_of);
    }
  }

  template <class F>
  void read_pair_template(const Json& step, const std::string& first, const std::string& last,
                          F id_of) {
    const Json* pair = find_json(step, "/pair");
    if (!pair || !pair->is_array()) return;
    std::vector<Json> parts(pair->begin(), pair->end());
    if (!first.empty() && !parts.empty() && id_of(parts.front()) == first)
      parts.erase(parts.begin());
    if (!last.empty() && !parts.empty() && id_of(parts.back()) == last) parts.pop_back();
    if (parts.size() < 3) return;
    // A [sep] B, or A [eos] [sep] B
    auto separates = [&](const Json& part) {
      const std::string id = id_of(part);
      return !id.empty() && (id == special_["sep"] || id == special_["eos"]);
    };
    flags_["sep"] =
        (last.empty() && separates(parts[1])) || (parts.size() == 4 && separates(parts[2]));
  }

  void add_special_tokens() {
    for (const auto& token : kSpecialTokens) {
      std::optional<int64_t> id;
      const std::string& text = special_[token.hf];
      if (!text.empty())
        for (const auto& added : listed_)
          if (added.text == text && !id) id = added.id;
      if (!id) {
        const Json* v = find_json(config_.json, fmt::format("/{}_token_id", token.hf));
        if (v && v->is_number_unsigned()) id = v->get<int64_t>();
      }
      if (!id || *id < 0 || *id >= static_cast<int64_t>(n_vocab_)) continue;
      out_.set_meta(token.gguf, {static_cast<uint32_t>(*id)});
    }
    for (auto name : {"bos", "eos", "sep"}) {
      const Json* set = find_json(settings_, fmt::format("/add_{}_token", name));
      if (set && set->is_boolean()) flags_[name] = set->get<bool>();
      if (flags_.contains(name))
        out_.set_meta(fmt::format("tokenizer.ggml.add_{}_token", name), {flags_[name]});
    }
  }

  void add_chat_template() {
    const Json* v = find_json(settings_, "/chat_template");
    if (v && v->is_string()) {
      out_.set_meta("tokenizer.chat_template", {v->get<std::string>()});
    } else if (v && v->is_array()) {  // [{name, template}]
      for (const Json& entry : *v) {
        const Json* name = find_json(entry, "/name");
        const Json* text = find_json(entry, "/template");
        if (name && text && text->is_string() && *name == "default")
          out_.set_meta("tokenizer.chat_template", {text->get<std::string>()});
      }
    } else if (std::filesystem::exists(folder_ / "chat_template.jinja")) {
      out_.set_meta("tokenizer.chat_template", {read_text_file(folder_ / "chat_template.jinja")});
    }
  }

  std::filesystem::path folder_;
  const HfConfig& config_;
  size_t n_vocab_;
  TensorFile& out_;
  std::string file_;
  Json tokenizer_, settings_;
  std::vector<AddedToken> added_;   // by id, as tokenizer_config.json leaves them
  std::vector<AddedToken> listed_;  // tokenizer.json's own
  MetaValue::Strings tokens_;
  std::vector<float> scores_;
  std::vector<int32_t> types_;
  std::map<std::string_view, std::string> special_;
  std::map<std::string_view, bool> flags_;
};

}  // namespace

void add_hf_tokenizer(const std::filesystem::path& folder, const HfConfig& config, int64_t n_vocab,
                      TensorFile& out) {
  Import(folder, config, n_vocab, out).run();
}

}  // namespace mt
