#include "base/error.h"
#include "file/hf_tokenizer.h"
#include "file/json.h"
#include "file/names.h"

namespace mt {
namespace {

// The patterns as the models' published tokenizer.json files hold them.
#define MT_WORDS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define MT_REST "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define MT_LLAMA3 MT_WORDS "\\p{N}{1,3}" MT_REST
#define MT_QWEN2 MT_WORDS "\\p{N}" MT_REST

constexpr std::string_view kByteLevelJson =
    R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true})";
constexpr std::string_view kDigitsJson =
    R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},)"
    R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]})";
constexpr std::string_view kLlama3Json =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]})json";
constexpr std::string_view kQwen2Json =
    R"json({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":false,"use_regex":false}]})json";

constexpr PreTokenizer kPreTokenizers[] = {
    {"gpt-2", "words and bytes", kByteLevelJson, "null"},
    {"smollm", "digits, words and bytes", kDigitsJson, "null"},
    {.name = "llama-bpe",
     .signature = "split '" MT_LLAMA3 "', bytes",
     .json = kLlama3Json,
     .normalizer = "null",
     .ignore_merges = true,
     .adds_bos = true},
    {"qwen2", "split '" MT_QWEN2 "', bytes", kQwen2Json, R"({"type":"NFC"})"},
};

// One step of a pre-tokenizer in words that two files agree in exactly where they do the same.
std::string sign(const nlohmann::json& step) {
  const nlohmann::json* type = find_json(step, "/type");
  if (!type || !type->is_string()) return "nothing";
  auto flag = [&](const char* key, bool fallback) {
    const nlohmann::json* v = find_json(step, std::string("/") + key);
    return v && v->is_boolean() ? v->get<bool>() : fallback;
  };
  if (*type == "ByteLevel") {
    std::string s = flag("use_regex", true) ? "words and bytes" : "bytes";
    return flag("add_prefix_space", true) ? s + " with a leading space" : s;
  }
  if (*type == "Digits") return flag("individual_digits", false) ? "digits" : "runs of digits";
  if (*type == "Split") {
    const nlohmann::json* regex = find_json(step, "/pattern/Regex");
    const nlohmann::json* behavior = find_json(step, "/behavior");
    if (regex && regex->is_string() && behavior && *behavior == "Isolated" &&
        !flag("invert", false))
      return "split '" + regex->get<std::string>() + "'";
  }
  return step.dump();
}

std::string sign_all(const nlohmann::json& pre) {
  const nlohmann::json* steps = find_json(pre, "/pretokenizers");
  if (!steps || !steps->is_array()) return sign(pre);
  std::string signature;
  for (const auto& step : *steps) signature += (signature.empty() ? "" : ", ") + sign(step);
  return signature;
}

}  // namespace

const PreTokenizer& recognise_pre_tokenizer(const std::string& file, const nlohmann::json& pre) {
  const std::string signature = sign_all(pre);
  for (const auto& p : kPreTokenizers)
    if (p.signature == signature) return p;
  throw_error("{}: tokenizer: pre_tokenizer: expected that of {}, found another: {}", file,
              pre_tokenizer_names(), printable(signature));
}

const PreTokenizer* find_pre_tokenizer(std::string_view name) {
  for (const auto& p : kPreTokenizers)
    if (p.name == name) return &p;
  return nullptr;
}

std::string pre_tokenizer_names() {
  std::string names;
  for (const auto& p : kPreTokenizers) names += (names.empty() ? "" : ", ") + std::string(p.name);
  return names;
}

}  // namespace mt
