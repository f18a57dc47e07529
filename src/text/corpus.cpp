#include "text/corpus.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"

namespace mt {
namespace {

using Json = nlohmann::ordered_json;  // TruthfulQA's choices are keys: their order counts

std::vector<int32_t> tokens_of(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> tokens;
  if (tokenizer.adds_bos()) tokens.push_back(tokenizer.bos());
  const std::vector<int32_t> ids = tokenizer.encode(text, false);
  tokens.insert(tokens.end(), ids.begin(), ids.end());
  return tokens;
}

Question question_of_line(const Json& j) {
  Question q;
  q.query = j.at("query").get<std::string>();
  q.choices = j.at("choices").get<std::vector<std::string>>();
  q.gold = j.at("gold").get<int64_t>();
  return q;
}

Question question_of_truthful(const Json& j) {
  Question q;
  q.query = j.at("question").get<std::string>();
  q.gold = -1;
  for (const auto& [choice, right] : j.at("mc1_targets").items()) {
    if (right.get<int>() == 1) q.gold = static_cast<int64_t>(q.choices.size());
    q.choices.push_back(choice);
  }
  return q;
}

}  // namespace

TextSource parse_text_source(const std::string& argument) {
  const size_t colon = argument.rfind(':');
  if (colon == std::string::npos || std::filesystem::exists(argument)) return {argument, 1.0};
  const std::string number = argument.substr(colon + 1);
  double weight = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), weight);
  if (error != std::errc() || end != number.data() + number.size() || !std::isfinite(weight) ||
      weight <= 0)
    throw_error("text '{}': expected FILE or FILE:WEIGHT with a positive weight, found '{}'",
                argument, number);
  return {argument.substr(0, colon), weight};
}

TokenWindows windows_of_text(const Tokenizer& tokenizer, const std::string& text,
                             const std::string& name, int64_t n_ctx, int64_t most) {
  if (n_ctx < 2) throw_error("windows: expected at least 2 tokens a window, found {}", n_ctx);
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
  std::string place = "line 1";
  const auto add = [&](Question q) {
    if (q.choices.size() < 2)
      throw_error("{}: {}: expected at least 2 choices, found {}", path.string(), place,
                  q.choices.size());
    if (q.gold < 0 || q.gold >= static_cast<int64_t>(q.choices.size()))
      throw_error("{}: {}: expected the right choice below {}, found {}", path.string(), place,
                  q.choices.size(), q.gold);
    set.questions.push_back(std::move(q));
  };
  try {
    const size_t start = text.find_first_not_of(" \t\r\n");
    if (start != std::string::npos && text[start] == '[') {
      place = "array";
      const Json all = Json::parse(text);
      for (size_t i = 0; i < all.size(); ++i) {
        place = fmt::format("question {}", i);
        add(question_of_truthful(all[i]));
      }
    } else {
      size_t line = 0;
      for (size_t begin = 0; begin < text.size();) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        place = fmt::format("line {}", ++line);
        const std::string_view one = std::string_view(text).substr(begin, end - begin);
        if (one.find_first_not_of(" \t\r") != std::string_view::npos)
          add(question_of_line(Json::parse(one)));
        begin = end + 1;
      }
    }
  } catch (const nlohmann::json::exception& e) {
    throw_error(
        "{}: {}: expected query, choices and gold (or TruthfulQA's question and "
        "mc1_targets): {}",
        path.string(), place, e.what());
  }
  if (set.questions.empty()) throw_error("{}: expected questions, found none", path.string());
  return set;
}

}  // namespace mt
