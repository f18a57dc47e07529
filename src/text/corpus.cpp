#include "text/corpus.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "base/files.h"
#include "flow/json_fields.h"
#include "flow/json_mistake.h"
#include "text/utf8.h"

namespace mt {
namespace {

std::vector<int32_t> tokens_of(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> tokens;
  if (tokenizer.adds_bos()) tokens.push_back(tokenizer.bos());
  const std::vector<int32_t> ids = tokenizer.encode(text, false);
  tokens.insert(tokens.end(), ids.begin(), ids.end());
  return tokens;
}

// One question's JSON, read with checks. `place`: "FILE: line 3".
class QuestionReader {
 public:
  QuestionReader(const Json& json, std::string place) : json_(json), place_(std::move(place)) {
    if (!json.is_object()) throw_error("{}: expected an object, found {}", place_, describe(json));
  }

  // query, choices, gold
  Question of_line() const {
    Question q;
    q.query = text_of(need("query"), "query");
    for (const Json& choice : need_kind("choices", "an array", &Json::is_array))
      q.choices.push_back(text_of(choice, "choices"));
    const Json& gold = need_kind("gold", "an integer", &Json::is_number_integer);
    q.gold = gold.get<int64_t>();
    return checked(std::move(q));
  }

  // question, mc1_targets: choices as keys, the right one marked 1
  Question of_truthful() const {
    Question q;
    q.query = text_of(need("question"), "question");
    q.gold = -1;
    for (const auto& [choice, right] :
         need_kind("mc1_targets", "an object", &Json::is_object).items()) {
      if (right == 1) q.gold = static_cast<int64_t>(q.choices.size());
      q.choices.push_back(choice);
    }
    return checked(std::move(q));
  }

 private:
  const Json& need(const char* field) const {
    const auto it = json_.find(field);
    if (it == json_.end())
      throw_error(
          "{}: '{}' is missing; expected query, choices and gold (one object a line), or "
          "TruthfulQA's array of question and mc1_targets",
          place_, field);
    return *it;
  }
  const Json& need_kind(const char* field, const char* expected,
                        bool (Json::*is)() const noexcept) const {
    const Json& value = need(field);
    if (!(value.*is)())
      throw_error("{}: '{}': expected {}, found {}", place_, field, expected, describe(value));
    return value;
  }
  std::string text_of(const Json& value, const char* field) const {
    if (!value.is_string())
      throw_error("{}: '{}': expected text, found {}", place_, field, describe(value));
    return value.get<std::string>();
  }
  Question checked(Question q) const {
    if (q.choices.size() < 2)
      throw_error("{}: expected at least 2 choices, found {}", place_, q.choices.size());
    // An empty text has a probability of 1 and would win every time.
    for (const std::string& choice : q.choices)
      if (choice.empty()) throw_error("{}: a choice is empty", place_);
    if (q.gold < 0 || q.gold >= std::ssize(q.choices))
      throw_error("{}: expected the right choice from 0 to {}, found {}", place_,
                  q.choices.size() - 1, q.gold < 0 ? "none" : std::to_string(q.gold));
    return q;
  }

  const Json& json_;
  std::string place_;
};

Json question_json(std::string_view text, const std::string& place) {
  try {
    return Json::parse(text);
  } catch (const nlohmann::json::exception& e) {
    throw_error("{}: expected JSON, found {}", place, json_mistake(e, text));
  }
}

// A stray byte in a large text is no reason to refuse it; another kind of file is.
void check_is_text(const std::string& text, const std::string& name) {
  if (text.empty()) throw_error("{}: expected text, the file is empty", name);
  size_t bad = 0, first = 0;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = utf8_char(text, at);
    if ((!c.valid || c.code == 0) && bad++ == 0) first = at;
    at += c.length;
  }
  if (bad * 100 > text.size())
    throw_error(
        "{}: expected text in UTF-8, found byte 0x{:02x} at offset {}, and {} of {} bytes that are "
        "NUL or no UTF-8; convert it first",
        name, static_cast<uint8_t>(text[first]), first, bad, text.size());
}

}  // namespace

TextSource parse_text_source(const std::string& argument) {
  const size_t colon = argument.rfind(':');
  if (colon == std::string::npos || std::filesystem::exists(argument)) return {argument, 1.0};
  const std::string number = argument.substr(colon + 1);
  double weight = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), weight);
  // Beyond that no text is long enough to hold its share.
  if (error != std::errc() || end != number.data() + number.size() ||
      !(weight >= 1e-3 && weight <= 1e3))
    throw_error(
        "text '{}': expected FILE or FILE:WEIGHT with a weight of 0.001 to 1000, found '{}'",
        argument, number);
  return {argument.substr(0, colon), weight};
}

TokenWindows windows_of_text(const Tokenizer& tokenizer, const std::string& text,
                             const std::string& name, int64_t n_ctx, int64_t most) {
  if (n_ctx < 2) throw_error("windows: expected at least 2 tokens a window, found {}", n_ctx);
  check_is_text(text, name);
  TokenWindows windows{.tokens = tokens_of(tokenizer, text),
                       .n_ctx = n_ctx,
                       .bos = tokenizer.adds_bos(),
                       .sha256 = sha256_hex(text)};
  const auto n_tokens = static_cast<int64_t>(windows.tokens.size());
  int64_t count = n_tokens / n_ctx;
  if (count < 1)
    throw_error("{}: text too short: expected at least {} tokens for one window, found {}", name,
                n_ctx, n_tokens);
  if (most > 0) count = std::min(count, most);
  windows.tokens.resize(static_cast<size_t>(count * n_ctx));
  if (windows.bos)
    for (int64_t i = 0; i < count; ++i)
      windows.tokens[static_cast<size_t>(i * n_ctx)] = tokenizer.bos();
  return windows;
}

TokenWindows windows_of_files(const Tokenizer& tokenizer, const std::vector<TextSource>& sources,
                              int64_t n_ctx, int64_t most) {
  if (sources.empty()) throw_error("windows: expected at least one text file, found none");
  if (sources.size() == 1)
    return windows_of_text(tokenizer, read_text_file(sources[0].path), sources[0].path.string(),
                           n_ctx, most);
  std::vector<TokenWindows> parts;
  std::string hashes;
  double weights = 0;
  for (const TextSource& s : sources) {
    parts.push_back(windows_of_text(tokenizer, read_text_file(s.path), s.path.string(), n_ctx));
    hashes += fmt::format("{} {}\n", parts.back().sha256, s.weight);
    weights += s.weight;
  }
  // As many as the file that is used up first allows.
  double total = most > 0 ? static_cast<double>(most) : INFINITY;
  for (size_t i = 0; i < parts.size(); ++i)
    total = std::min(total, static_cast<double>(parts[i].count()) * weights / sources[i].weight);
  const auto wanted = std::max<int64_t>(1, static_cast<int64_t>(total + 1e-9));
  TokenWindows mixed{
      .tokens = {}, .n_ctx = n_ctx, .bos = parts[0].bos, .sha256 = sha256_hex(hashes)};
  std::vector<int64_t> taken(parts.size(), 0);
  for (int64_t n = 0; n < wanted; ++n) {
    // The file that is furthest behind its share goes next.
    size_t next = parts.size();
    double behind = -INFINITY;
    for (size_t i = 0; i < parts.size(); ++i) {
      const double due =
          static_cast<double>(n + 1) * sources[i].weight / weights - static_cast<double>(taken[i]);
      if (taken[i] < parts[i].count() && due > behind) behind = due, next = i;
    }
    if (next == parts.size()) break;
    const auto window = parts[next].window(taken[next]++);
    mixed.tokens.insert(mixed.tokens.end(), window.begin(), window.end());
  }
  return mixed;
}

QuestionSet read_questions(const std::filesystem::path& path) {
  const std::string text = read_text_file(path);
  QuestionSet set{.questions = {}, .sha256 = sha256_hex(text)};
  const std::string file = path.string();
  const size_t start = text.find_first_not_of(" \t\r\n");
  if (start != std::string::npos && text[start] == '[') {
    const Json all = question_json(text, file);
    for (size_t i = 0; i < all.size(); ++i)
      set.questions.push_back(
          QuestionReader(all[i], fmt::format("{}: question {}", file, i)).of_truthful());
  } else {
    size_t line = 0;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      const std::string place = fmt::format("{}: line {}", file, ++line);
      const std::string_view one = std::string_view(text).substr(begin, end - begin);
      if (one.find_first_not_of(" \t\r") != std::string_view::npos)
        set.questions.push_back(QuestionReader(question_json(one, place), place).of_line());
      begin = end + 1;
    }
  }
  if (set.questions.empty()) throw_error("{}: expected questions, found none", path.string());
  return set;
}

}  // namespace mt
