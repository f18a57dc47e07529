#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pre_tokenizer.h"

#include <pcre2.h>

#include <algorithm>
#include <map>
#include <string>

#include "base/error.h"

namespace mt {
namespace {

// White space as Unicode has it. PCRE2's \s also takes U+180E, which left White_Space in 6.3.
constexpr const char* kSpace =
    R"(\t-\r\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// Kaktovik numerals came with Unicode 15; PCRE2 before 10.43 knows 14.
constexpr const char* kDigit = R"(\p{N}\x{1d2c0}-\x{1d2d3})";

enum class Cut { Default, Gpt2, Digits, Llama3, Qwen2 };

// The patterns as the models' own tokenizer.json files state them. {s} and {d} stand for
// the classes above, within brackets. Where several are listed, each cuts the pieces that the ones
// before it left, matches and gaps alike.
const std::string kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[{d}]+| ?[^{s}\p{L}{d}]+|[{s}]+(?![^{s}])|[{s}]+)";
std::string words_with_digits(const char* digits) {
  return std::string(R"('[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|)") +
         R"([^\r\n\p{L}{d}]?\p{L}+|[{d}])" + digits +
         R"(| ?[^{s}\p{L}{d}]+[\r\n]*|[{s}]*[\r\n]+|[{s}]+(?![^{s}])|[{s}]+)";
}
std::vector<std::string> patterns_of(Cut cut) {
  switch (cut) {
    case Cut::Default:
      return {R"([\p{P}$+<=>^~|]+)", kGpt2, R"([{d}]+)", R"([0-9][0-9][0-9])"};
    case Cut::Gpt2:
      return {kGpt2};
    case Cut::Digits:
      return {R"([{d}])", kGpt2};
    case Cut::Llama3:
      return {words_with_digits("{1,3}")};
    case Cut::Qwen2:
      return {words_with_digits("")};
  }
  return {};
}

struct Kind {
  Cut cut;
  bool whole_words_first = false;
  bool adds_bos = false;
};
// Which names share a pattern, from the table of names in llama.cpp's vocabulary reader.
const std::map<std::string, Kind>& kinds() {
  static const std::map<std::string, Kind> table = [] {
    std::map<std::string, Kind> t;
    const auto add = [&](Kind kind, std::initializer_list<const char*> names) {
      for (const char* name : names) t.emplace(name, kind);
    };
    add({Cut::Default}, {"default"});
    add({Cut::Gpt2},
        {"gpt-2", "phi-2", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de",
         "jina-v2-code", "roberta-bpe", "gigachat", "a.x-4.0", "mellum", "modern-bert", "mpt",
         "olmo", "jais", "trillion", "granite-docling", "exaone4"});
    add({Cut::Digits}, {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone",
                        "minerva-7b", "mellum2"});
    add({Cut::Llama3, true, true}, {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1",
                                    "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"});
    add({Cut::Llama3}, {"dbrx", "smaug-bpe", "glm4", "chatglm-bpe"});
    add({Cut::Qwen2}, {"qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "hunyuan",
                       "solar-open", "megrez", "grok-2"});
    return t;
  }();
  return table;
}

std::string with_classes(std::string pattern) {
  for (const auto& [mark, text] : {std::pair("{s}", kSpace), std::pair("{d}", kDigit)})
    for (size_t at; (at = pattern.find(mark)) != std::string::npos;) pattern.replace(at, 3, text);
  return pattern;
}

}  // namespace

struct WordCutter::Pattern {
  pcre2_code* code = nullptr;
  bool jit = false;

  explicit Pattern(const std::string& text) {
    int error = 0;
    PCRE2_SIZE where = 0;
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                         PCRE2_UTF | PCRE2_UCP, &error, &where, nullptr);
    if (!code) throw_error("pre-tokenizer: pattern error {} at {} of '{}'", error, where, text);
    jit = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
  }
  ~Pattern() { pcre2_code_free(code); }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;
};

WordCutter::WordCutter(const std::string& name, const std::string& path) : path_(path) {
  const auto kind = kinds().find(name.empty() ? "default" : name);
  if (kind == kinds().end()) {
    std::string known;
    for (const auto& [other, unused] : kinds()) known += (known.empty() ? "" : ", ") + other;
    throw_error("{}: metadata 'tokenizer.ggml.pre': unknown pre-tokenizer '{}'; known: {}", path,
                name, known);
  }
  whole_words_first_ = kind->second.whole_words_first;
  adds_bos_ = kind->second.adds_bos;
  for (const std::string& text : patterns_of(kind->second.cut))
    patterns_.push_back(std::make_unique<Pattern>(with_classes(text)));
}

WordCutter::~WordCutter() = default;

void WordCutter::split(std::string_view text, std::vector<size_t>& ends) const {
  ends.assign(1, text.size());
  if (text.empty()) {
    ends.clear();
    return;
  }
  using Data = std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>;
  using Context = std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)>;
  const Data data(pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  const Context context(pcre2_match_context_create(nullptr), pcre2_match_context_free);
  if (!data || !context) throw std::bad_alloc();
  // The patterns go back over a run of spaces once, so a few steps a byte are enough.
  pcre2_set_match_limit(context.get(), static_cast<uint32_t>(std::clamp<size_t>(
                                           4 * text.size(), 10'000'000, UINT32_MAX)));
  std::vector<size_t> cut;
  for (const auto& pattern : patterns_) {
    cut.clear();
    size_t begin = 0;
    for (const size_t end : ends) {
      // A piece is a text of its own: what follows it is not looked at.
      const auto* piece = reinterpret_cast<PCRE2_SPTR>(text.data() + begin);
      const size_t size = end - begin;
      size_t at = 0;
      while (at < size) {
        const int found = pattern->jit ? pcre2_jit_match(pattern->code, piece, size, at, 0,
                                                         data.get(), context.get())
                                       : pcre2_match(pattern->code, piece, size, at,
                                                     PCRE2_NO_UTF_CHECK, data.get(), context.get());
        if (found == PCRE2_ERROR_NOMATCH) break;
        if (found < 0)
          throw_error("{}: pre-tokenizer: gave up at byte {} of a text of {} (PCRE2 error {})",
                      path_, begin + at, text.size(), found);
        const PCRE2_SIZE* span = pcre2_get_ovector_pointer(data.get());
        if (span[0] > at) cut.push_back(begin + span[0]);
        cut.push_back(begin + span[1]);
        at = span[1];
      }
      if (at < size) cut.push_back(end);
      begin = end;
    }
    ends.swap(cut);
  }
}

}  // namespace mt
