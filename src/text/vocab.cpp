#include "text/vocab.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <initializer_list>
#include <unordered_set>

#include "base/error.h"

namespace mt {
namespace {

// Names by which files mark the end of a turn, a text or a repository file. Files often give only
// one of them by id, so all readers of GGUF go by the text too; the list is llama.cpp's.
const std::unordered_set<std::string_view> kEnds = {
    "<|eot_id|>",   "<|im_end|>",    "<|end|>",
    "<|return|>",   "<|call|>",      "<|flush|>",
    "<|calls|>",    "<end_of_turn>", "<|endoftext|>",
    "</s>",         "<|eom_id|>",    "<EOT>",
    "_<EOT>",       "[EOT]",         "[EOS]",
    "<eos>",        "<turn|>",       "<|end_of_text|>",
    "[e~[",         "<|fim_pad|>",   "<end_of_utterance>",
    "<fim-pad>",    "<fim_pad>",     "<|tool_response>",
    "<PAD>",        "<|fim_repo|>",  "<｜end▁of▁sentence｜>",
    "<|file_sep|>", "<|repo_name|>", "<fim-repo>",
    "<REPO>",       "<reponame>",
};
// Names of fill-in-the-middle markers: control tokens even where the file forgets to say so.
const std::unordered_set<std::string_view> kMiddle = {
    "<|fim_prefix|>", "<fim-prefix>",    "<fim_prefix>",    "<｜fim▁begin｜>", "<PRE>",
    "▁<PRE>",         "<|code_prefix|>", "<|prefix|>",      "<|fim_suffix|>",  "<fim-suffix>",
    "<fim_suffix>",   "<｜fim▁hole｜>",  "<SUF>",           "▁<SUF>",          "<|code_suffix|>",
    "<|suffix|>",     "<|fim_middle|>",  "<fim-middle>",    "<fim_middle>",    "<｜fim▁end｜>",
    "<MID>",          "▁<MID>",          "<|code_middle|>", "<|middle|>",
};

// A search at every byte of a text walks at most this far.
constexpr size_t kLongestSpecial = 1024;
// So many occurrences that touch one another are settled at once: a file may name "a", "aa", "aaa"
// and so on, and memory must not grow by the product of their number and the text.
constexpr size_t kMostTouching = 1u << 18;

bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

}  // namespace

int byte_token_value(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  int value = 0;
  for (const char c : text.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

Vocab::Vocab(const TensorFile& file, const std::string& family) : path(file.path) {
  const auto* tokens = file.get_strings("tokenizer.ggml.tokens");
  if (!tokens || tokens->empty())
    throw_error("{}: metadata 'tokenizer.ggml.tokens': expected the vocabulary, found {}", path,
                tokens ? "an empty array" : "nothing");
  if (tokens->size() > static_cast<size_t>(INT32_MAX))
    throw_error("{}: metadata 'tokenizer.ggml.tokens': {} tokens", path, tokens->size());
  texts = *tokens;
  const size_t n = texts.size();
  const auto checked = [&](const char* key, std::vector<double> values) {
    if (values.size() != n)
      throw_error("{}: metadata '{}': expected {} values, one a token, found {}", path, key, n,
                  values.size());
    return values;
  };
  scores.assign(n, 0.0f);
  if (auto v = file.get_numbers("tokenizer.ggml.scores")) {
    const auto values = checked("tokenizer.ggml.scores", std::move(*v));
    // A score that is not a number would break the order of merges: it merges last.
    for (size_t i = 0; i < n; ++i)
      scores[i] = std::isnan(values[i]) ? -INFINITY : static_cast<float>(values[i]);
  }
  types.assign(n, TokenKind::Normal);
  if (auto v = file.get_numbers("tokenizer.ggml.token_type")) {
    const auto values = checked("tokenizer.ggml.token_type", std::move(*v));
    for (size_t i = 0; i < n; ++i)
      types[i] = values[i] >= 0 && values[i] <= 6
                     ? static_cast<TokenKind>(static_cast<uint8_t>(values[i]))
                     : TokenKind::Undefined;
  }
  ids.reserve(n);
  for (size_t i = 0; i < n; ++i) {
    if (texts[i].empty()) continue;
    ids.insert_or_assign(std::string_view(texts[i]), static_cast<int32_t>(i));
    longest = std::max(longest, texts[i].size());
  }

  const auto given = [&](int32_t id) { return id < size() ? id : -1; };
  if (family == "llama") {
    bos = given(1), eos = given(2), unknown = given(0);
  } else if (family == "bert") {
    bos = given(101), unknown = given(100), separator = given(102);
  } else if (given(11) >= 0 && type(11) == TokenKind::Control) {
    // Readers give id 11 to byte-level files that name no BOS or EOS: Falcon's <|endoftext|>. In
    // other vocabularies 11 is an ordinary token, and a text must not end at it.
    bos = eos = 11;
  }
  ends.assign(n, false);
  mark_by_text();
  read_special_ids(file, family);

  strips_right.assign(n, false);
  std::string name = file.get_string("general.name").value_or("");
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (name.find("phi-3") != std::string::npos || name.find("phi3") != std::string::npos)
    for (size_t i = 0; i < n; ++i)
      strips_right[i] = (types[i] == TokenKind::UserDefined || hidden(static_cast<int32_t>(i))) &&
                        texts[i] != "<unk>" && texts[i] != "<s>" && texts[i] != "<|endoftext|>";
}

void Vocab::read_special_ids(const TensorFile& file, const std::string& family) {
  const auto read = [&](const char* name, int32_t& id) {
    const std::string key = std::string("tokenizer.ggml.") + name + "_token_id";
    const auto value = file.get_int(key);
    if (!value) return;
    if (*value < 0 || *value >= size())
      throw_error("{}: metadata '{}': expected an id below {}, found {}", path, key, size(),
                  *value);
    id = static_cast<int32_t>(*value);
  };
  if (family == "bert") read("cls", bos);
  read("bos", bos);
  read("eos", eos);
  read("unknown", unknown);
  read("seperator", separator);  // the name is misspelt in the format's first files
  read("separator", separator);
  if (family == "bert" && eos < 0) eos = separator;
  for (const char* name : {"eot", "eom", "fim_pad", "fim_rep", "fim_sep"}) {
    int32_t id = -1;
    read(name, id);
    if (id >= 0) ends[static_cast<size_t>(id)] = true;
  }
  if (eos >= 0) ends[static_cast<size_t>(eos)] = true;
}

void Vocab::mark_by_text() {
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string_view t = texts[i];
    if (kEnds.contains(t)) ends[i] = true;
    if (ends[i] || kMiddle.contains(t)) types[i] = TokenKind::Control;
    // Channel markers of the harmony format are part of what the user reads.
    if (t == "<|channel|>" || t == "<|message|>" || t == "<|start|>" || t == "<|constrain|>")
      types[i] = TokenKind::UserDefined;
  }
  // There "<|end|>" closes a channel, not the answer.
  const auto has = [&](std::string_view t) { return find(t) >= 0; };
  if (const int32_t end = find("<|end|>");
      end >= 0 && ((has("<|return|>") && (has("<|call|>") || has("<|calls|>"))) ||
                   (has("<|flush|>") && (has("<|call|>") || has("<|calls|>"))))) {
    ends[static_cast<size_t>(end)] = false;
    types[static_cast<size_t>(end)] = TokenKind::UserDefined;
  }
}

SpecialTokens::SpecialTokens(const Vocab& vocab) : vocab_(vocab) {
  std::vector<int32_t> user_defined, all;
  for (int32_t id = 0; id < vocab.size(); ++id) {
    const bool user = vocab.type(id) == TokenKind::UserDefined;
    const std::string& text = vocab.text(id);
    if ((!user && !vocab.hidden(id)) || text.empty()) continue;
    if (text.size() > kLongestSpecial)
      throw_error("{}: metadata 'tokenizer.ggml.tokens': special token {} has {} bytes, at most {}",
                  vocab.path, id, text.size(), kLongestSpecial);
    if (user) user_defined.push_back(id);
    all.push_back(id);
  }
  user_defined_ = sort(std::move(user_defined));
  all_ = sort(std::move(all));
}

SpecialTokens::Sorted SpecialTokens::sort(std::vector<int32_t> ids) const {
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return vocab_.text(a) < vocab_.text(b); });
  ids.erase(std::unique(ids.begin(), ids.end(),
                        [&](int32_t a, int32_t b) { return vocab_.text(a) == vocab_.text(b); }),
            ids.end());
  Sorted sorted{.ids = std::move(ids)};
  for (const int32_t id : sorted.ids)
    ++sorted.first[static_cast<uint8_t>(vocab_.text(id)[0]) + size_t{1}];
  for (size_t b = 1; b < sorted.first.size(); ++b) sorted.first[b] += sorted.first[b - 1];
  return sorted;
}

std::vector<SpecialTokens::Fragment> SpecialTokens::split(std::string_view text,
                                                          bool control) const {
  const Sorted& sorted = control ? all_ : user_defined_;
  struct Found {
    size_t at, length;
    int32_t id;
  };
  std::vector<Found> chosen, cluster;
  size_t cluster_end = 0;
  // Occurrences that touch one another are settled together: the longest takes its bytes first.
  const auto settle = [&] {
    std::stable_sort(cluster.begin(), cluster.end(),
                     [](const Found& a, const Found& b) { return a.length > b.length; });
    std::vector<bool> taken;
    const size_t begin = cluster.empty() ? 0 : [&] {
      size_t low = SIZE_MAX;
      for (const Found& f : cluster) low = std::min(low, f.at);
      return low;
    }();
    taken.assign(cluster_end - begin, false);
    const size_t first_new = chosen.size();
    for (const Found& f : cluster) {
      // No shorter occurrence was settled before this one, so looking at its ends is enough.
      if (taken[f.at - begin] || taken[f.at + f.length - 1 - begin]) continue;
      std::fill_n(taken.begin() + static_cast<ptrdiff_t>(f.at - begin), f.length, true);
      chosen.push_back(f);
    }
    std::sort(chosen.begin() + static_cast<ptrdiff_t>(first_new), chosen.end(),
              [](const Found& a, const Found& b) { return a.at < b.at; });
    cluster.clear();
  };
  for (size_t at = 0; at < text.size() && !sorted.ids.empty(); ++at) {
    const auto byte = static_cast<uint8_t>(text[at]);
    auto low = sorted.ids.begin() + sorted.first[byte];
    auto high = sorted.ids.begin() + sorted.first[byte + size_t{1}];
    if (low == high) continue;
    if (cluster.size() >= kMostTouching) {
      settle();
      if (const size_t end = chosen.back().at + chosen.back().length; end > at) {
        at = end - 1;
        continue;
      }
    }
    for (size_t depth = 1; low != high; ++depth) {
      if (vocab_.text(*low).size() == depth) {
        if (!cluster.empty() && at >= cluster_end) settle();
        cluster.push_back({at, depth, *low});
        cluster_end = std::max(cluster_end, at + depth);
        if (++low == high) break;
      }
      if (at + depth >= text.size()) break;
      const auto next = static_cast<uint8_t>(text[at + depth]);
      const auto at_depth = [&](int32_t id) {
        return static_cast<uint8_t>(vocab_.text(id)[depth]);
      };
      low = std::partition_point(low, high, [&](int32_t id) { return at_depth(id) < next; });
      high = std::partition_point(low, high, [&](int32_t id) { return at_depth(id) == next; });
    }
  }
  if (!cluster.empty()) settle();

  std::vector<Fragment> fragments;
  fragments.reserve(2 * chosen.size() + 1);
  size_t done = 0;
  for (const Found& f : chosen) {
    if (f.at > done) fragments.push_back({-1, text.substr(done, f.at - done)});
    fragments.push_back({f.id, {}});
    done = std::max(done, f.at + f.length);
    if (vocab_.strips_right[static_cast<size_t>(f.id)])
      while (done < text.size() && is_space(text[done])) ++done;
  }
  if (done < text.size()) fragments.push_back({-1, text.substr(done)});
  return fragments;
}

}  // namespace mt
