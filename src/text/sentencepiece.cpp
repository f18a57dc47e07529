// SentencePiece's BPE (Kudo and Richardson 2018) as GGUF files carry it: characters are merged
// while the result is in the vocabulary, the result of highest score first, of equal ones the
// leftmost; what stays unknown becomes byte tokens. Spaces are written as U+2581.
#include <algorithm>
#include <array>
#include <deque>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "text/kinds.h"
#include "text/utf8.h"
#include "text/vocab.h"

namespace mt {
namespace {

constexpr std::string_view kSpaceMark = "\xe2\x96\x81";

class SentencePiece final : public Tokenizer {
 public:
  explicit SentencePiece(const TensorFile& file)
      : vocab_(file, "llama"),
        special_(vocab_),
        adds_bos_(file.get_bool("tokenizer.ggml.add_bos_token").value_or(true)),
        adds_eos_(file.get_bool("tokenizer.ggml.add_eos_token").value_or(false)),
        space_prefix_(file.get_bool("tokenizer.ggml.add_space_prefix").value_or(true)) {
    for (int b = 0; b < 256; ++b) {
      const auto byte = static_cast<size_t>(b);
      int32_t id = vocab_.find(fmt::format("<0x{:02X}>", b));
      if (id < 0) id = vocab_.find(std::string(1, static_cast<char>(b)));
      byte_ids_[byte] = id >= 0 ? id : vocab_.unknown;
    }
    for (int32_t id = 0; id < vocab_.size(); ++id)
      if (!vocab_.hidden(id)) note_inner_spaces(vocab_.text(id));
  }

  std::vector<int32_t> encode(std::string_view text, bool special) const override {
    Work work;
    std::vector<int32_t> out;
    out.reserve(text.size() / 3);
    std::deque<std::string> escaped;  // the words seen point into these
    bool after_special = true;
    for (const auto& fragment : special_.split(text, special)) {
      if (fragment.id >= 0) {
        out.push_back(fragment.id);
        after_special = true;
        continue;
      }
      std::string& marked = escaped.emplace_back();
      marked.reserve(fragment.text.size() + fragment.text.size() / 2 + kSpaceMark.size());
      if (space_prefix_ && after_special) marked += kSpaceMark;
      for (const char c : fragment.text) {
        if (c == ' ')
          marked += kSpaceMark;
        else
          marked += c;
      }
      encode_marked(marked, work, out);
      after_special = false;
    }
    return out;
  }

  std::string piece(int32_t id, bool special, bool first) const override {
    if (id < 0 || id >= vocab_.size()) return "";
    const std::string& text = vocab_.text(id);
    if (vocab_.hidden(id)) return special ? text : "";
    switch (vocab_.type(id)) {
      case TokenKind::UserDefined:
        return text;
      case TokenKind::Byte:
        if (const int value = byte_token_value(text); value >= 0)
          return std::string(1, static_cast<char>(value));
        return "";
      case TokenKind::Normal: {
        std::string plain;
        for (size_t at = 0; at < text.size();) {
          if (text.compare(at, kSpaceMark.size(), kSpaceMark) == 0) {
            plain += ' ';
            at += kSpaceMark.size();
          } else {
            plain += text[at++];
          }
        }
        if (first && space_prefix_ && plain.starts_with(' ')) plain.erase(0, 1);
        return plain;
      }
      case TokenKind::Undefined:
      case TokenKind::Unused:
      case TokenKind::Control:
      case TokenKind::Unknown:
        return "";
    }
    return "";
  }

  int32_t n_vocab() const override { return vocab_.size(); }
  bool is_control(int32_t id) const override {
    return id >= 0 && id < vocab_.size() && vocab_.hidden(id);
  }
  bool is_end(int32_t id) const override {
    return id >= 0 && id < vocab_.size() && vocab_.ends[static_cast<size_t>(id)];
  }
  int32_t bos() const override { return vocab_.bos; }
  int32_t eos() const override { return vocab_.eos; }
  bool adds_bos() const override { return adds_bos_ && vocab_.bos >= 0; }
  bool adds_eos() const override { return adds_eos_ && vocab_.eos >= 0; }

 private:
  struct Symbol {
    uint32_t at, size;  // bytes of the word; size 0: merged into the one before
    int32_t previous, next;
  };
  struct Candidate {
    float score;
    int32_t left, right;
    uint32_t size;
    bool operator<(const Candidate& o) const {
      return score != o.score ? score < o.score : left > o.left;
    }
  };
  struct Work {
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    std::unordered_map<std::string_view, std::pair<uint32_t, uint32_t>> seen;
    std::vector<int32_t> seen_ids;
  };
  static constexpr size_t kSeenMost = 1u << 18;
  static constexpr size_t kSeenBytes = 64;

  // How many bytes the reader takes for one character: what the first byte announces, whatever
  // follows, so that ill-formed text is cut where other readers of these files cut it.
  static size_t step(std::string_view text, size_t at) {
    return std::min<size_t>(utf8_announced(text[at]), text.size() - at);
  }
  static uint64_t packed(std::string_view character) {
    uint64_t value = 0;
    for (const char c : character) value = value << 8 | static_cast<uint8_t>(c);
    return value;
  }

  // Remembers which characters stand before a space mark within a token.
  void note_inner_spaces(std::string_view text) {
    std::string_view before;
    for (size_t at = 0; at < text.size();) {
      const std::string_view here = text.substr(at, step(text, at));
      if (here == kSpaceMark && !before.empty() && before != kSpaceMark)
        before_space_.insert(packed(before));
      before = here;
      at += here.size();
    }
  }

  // No merge reaches across a space mark whose preceding character no token has before a mark:
  // there the text falls into words, which repeat.
  void encode_marked(std::string_view text, Work& work, std::vector<int32_t>& out) const {
    size_t begin = 0;
    std::string_view before;
    for (size_t at = 0; at < text.size();) {
      const std::string_view here = text.substr(at, step(text, at));
      if (here == kSpaceMark && at > begin && before != kSpaceMark &&
          !before_space_.contains(packed(before))) {
        encode_word(text.substr(begin, at - begin), work, out);
        begin = at;
      }
      before = here;
      at += here.size();
    }
    encode_word(text.substr(begin), work, out);
  }

  void encode_word(std::string_view word, Work& work, std::vector<int32_t>& out) const {
    if (word.size() > kSeenBytes) return merge(word, work, out);
    if (const auto it = work.seen.find(word); it != work.seen.end()) {
      const auto ids = work.seen_ids.begin() + it->second.first;
      out.insert(out.end(), ids, ids + it->second.second);
      return;
    }
    const size_t before = out.size();
    merge(word, work, out);
    if (work.seen.size() >= kSeenMost) return;
    work.seen.emplace(word, std::pair(static_cast<uint32_t>(work.seen_ids.size()),
                                      static_cast<uint32_t>(out.size() - before)));
    work.seen_ids.insert(work.seen_ids.end(), out.begin() + static_cast<ptrdiff_t>(before),
                         out.end());
  }

  void merge(std::string_view word, Work& work, std::vector<int32_t>& out) const {
    if (word.size() > static_cast<size_t>(INT32_MAX))
      throw_error("{}: tokenizer: a word of {} bytes", vocab_.path, word.size());
    auto& symbols = work.symbols;
    auto& heap = work.heap;
    symbols.clear();
    heap.clear();
    for (size_t at = 0; at < word.size();) {
      const size_t size = step(word, at);
      const auto index = static_cast<int32_t>(symbols.size());
      symbols.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(size), index - 1,
                         at + size < word.size() ? index + 1 : -1});
      at += size;
    }
    const auto consider = [&](int32_t left, int32_t right) {
      if (left < 0 || right < 0) return;
      const Symbol& a = symbols[static_cast<size_t>(left)];
      const uint32_t size = a.size + symbols[static_cast<size_t>(right)].size;
      if (size > vocab_.longest) return;
      const int32_t id = vocab_.find(word.substr(a.at, size));
      if (id < 0 || vocab_.hidden(id)) return;
      heap.push_back({vocab_.scores[static_cast<size_t>(id)], left, right, size});
      std::push_heap(heap.begin(), heap.end());
    };
    for (int32_t i = 1; i < static_cast<int32_t>(symbols.size()); ++i) consider(i - 1, i);
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end());
      const Candidate c = heap.back();
      heap.pop_back();
      Symbol& left = symbols[static_cast<size_t>(c.left)];
      Symbol& right = symbols[static_cast<size_t>(c.right)];
      // Entries one of whose symbols has been merged since are void.
      if (left.size == 0 || right.size == 0 || left.size + right.size != c.size) continue;
      left.size = c.size;
      right.size = 0;
      left.next = right.next;
      if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = c.left;
      consider(left.previous, c.left);
      consider(c.left, left.next);
    }
    for (const Symbol& symbol : symbols) {
      if (symbol.size == 0) continue;
      const std::string_view text = word.substr(symbol.at, symbol.size);
      const int32_t id = vocab_.find(text);
      if (id >= 0 && !vocab_.hidden(id)) {
        out.push_back(id);
        continue;
      }
      for (const char c : text)
        if (const int32_t byte = byte_ids_[static_cast<uint8_t>(c)]; byte >= 0) out.push_back(byte);
    }
  }

  Vocab vocab_;
  SpecialTokens special_;
  bool adds_bos_, adds_eos_, space_prefix_;
  std::array<int32_t, 256> byte_ids_{};
  std::unordered_set<uint64_t> before_space_;
};

}  // namespace

std::unique_ptr<Tokenizer> open_sentencepiece(const TensorFile& file) {
  return std::make_unique<SentencePiece>(file);
}

}  // namespace mt
