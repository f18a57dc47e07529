// Byte-level BPE (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", 2.2;
// merges: Sennrich et al. 2016): text is cut into words, a word's bytes are merged pair by pair,
// the pair of lowest rank first, of equal ones the leftmost.
#include <algorithm>
#include <array>
#include <deque>
#include <optional>
#include <queue>
#include <unordered_map>

#include "base/error.h"
#include "text/kinds.h"
#include "text/pre_tokenizer.h"
#include "text/utf8.h"
#include "text/vocab.h"

namespace mt {
namespace {

// GPT-2 writes each byte as a printable character: these stand for themselves, the other 68 in
// their order for U+0100 and up.
bool prints_itself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct ByteAlphabet {
  std::array<uint32_t, 256> to_code{};
  std::unordered_map<uint32_t, uint8_t> to_byte;
  ByteAlphabet() {
    uint32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const auto byte = static_cast<uint8_t>(b);
      to_code[byte] = prints_itself(b) ? static_cast<uint32_t>(b) : next++;
      to_byte.emplace(to_code[byte], byte);
    }
  }
};
const ByteAlphabet& alphabet() {
  static const ByteAlphabet a;
  return a;
}

// (left symbol, right symbol) -> rank and result; open addressing, as every byte of every new word
// asks it.
class PairTable {
 public:
  struct Merge {
    uint64_t pair = UINT64_MAX;
    int32_t rank = 0;
    int32_t result = 0;
  };
  explicit PairTable(size_t n) {
    size_t size = 16;
    while (size < 2 * n) size *= 2;
    slots_.resize(size);
  }
  static uint64_t key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  // The first of equal pairs stays.
  void add(const Merge& merge) {
    size_t i = home(merge.pair);
    for (; slots_[i].pair != UINT64_MAX; i = (i + 1) & (slots_.size() - 1))
      if (slots_[i].pair == merge.pair) return;
    slots_[i] = merge;
  }
  const Merge* find(int32_t left, int32_t right) const {
    const uint64_t pair = key(left, right);
    for (size_t i = home(pair); slots_[i].pair != UINT64_MAX; i = (i + 1) & (slots_.size() - 1))
      if (slots_[i].pair == pair) return &slots_[i];
    return nullptr;
  }

 private:
  size_t home(uint64_t pair) const {
    return static_cast<size_t>((pair ^ pair >> 29) * 0x9E3779B97F4A7C15ull >> 20) &
           (slots_.size() - 1);
  }
  std::vector<Merge> slots_;
};

class ByteBpe final : public Tokenizer {
 public:
  explicit ByteBpe(const TensorFile& file)
      : vocab_(file, "gpt2"),
        special_(vocab_),
        pre_(file.get_string("tokenizer.ggml.pre").value_or("default"), file.path),
        merges_(read_merges(file)),
        adds_bos_(file.get_bool("tokenizer.ggml.add_bos_token").value_or(pre_.adds_bos())),
        adds_eos_(file.get_bool("tokenizer.ggml.add_eos_token").value_or(false)) {}

  std::vector<int32_t> encode(std::string_view text, bool special) const override {
    Work work;
    std::vector<int32_t> out;
    out.reserve(text.size() / 3);
    for (const auto& fragment : special_.split(text, special)) {
      if (fragment.id >= 0)
        out.push_back(fragment.id);
      else
        encode_text(fragment.text, work, out);
    }
    return out;
  }

  std::string piece(int32_t id, bool special, bool) const override {
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
      case TokenKind::Normal:
        return bytes_of(text);
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
  struct Candidate {
    int32_t rank;
    int32_t left;  // positions and symbols at the time of entry
    int32_t left_symbol, right_symbol;
    int32_t result;
    bool operator>(const Candidate& o) const {
      return rank != o.rank ? rank > o.rank : left > o.left;
    }
  };
  struct Work {
    std::vector<size_t> ends;
    std::vector<int32_t> symbols, previous, next;
    std::vector<Candidate> heap;
    // Words seen in this text -> where their ids lie. Texts repeat most of their words.
    std::unordered_map<std::string_view, std::pair<uint32_t, uint32_t>> seen;
    std::vector<int32_t> seen_ids;
  };
  static constexpr size_t kSeenMost = 1u << 18;
  static constexpr size_t kSeenBytes = 48;

  // Symbols are the vocabulary's ids; strings that only merges know come after them.
  PairTable read_merges(const TensorFile& file) {
    const auto* lines = file.get_strings("tokenizer.ggml.merges");
    if (!lines) throw_error("{}: metadata 'tokenizer.ggml.merges' is missing", file.path);
    if (lines->size() > static_cast<size_t>(INT32_MAX))
      throw_error("{}: metadata 'tokenizer.ggml.merges': {} merges", file.path, lines->size());
    std::unordered_map<std::string, int32_t> extra;
    const auto symbol = [&](const std::string& text) {
      if (const int32_t id = vocab_.find(text); id >= 0) return id;
      const auto [at, added] =
          extra.emplace(text, vocab_.size() + static_cast<int32_t>(extra.size()));
      if (added) extra_texts_.push_back(text);
      return at->second;
    };
    for (int b = 0; b < 256; ++b) {
      std::string text;
      append_utf8(text, alphabet().to_code[static_cast<size_t>(b)]);
      byte_symbols_[static_cast<size_t>(b)] = symbol(text);
    }
    PairTable table(lines->size());
    for (size_t rank = 0; rank < lines->size(); ++rank) {
      const std::string& line = (*lines)[rank];
      const size_t space = line.find(' ', 1);
      if (space == std::string::npos)
        throw_error(
            "{}: metadata 'tokenizer.ggml.merges': expected two parts in merge {}, found "
            "'{}'",
            file.path, rank, line);
      const std::string left = line.substr(0, space), right = line.substr(space + 1);
      table.add({.pair = PairTable::key(symbol(left), symbol(right)),
                 .rank = static_cast<int32_t>(rank),
                 .result = symbol(left + right)});
    }
    return table;
  }

  void encode_text(std::string_view text, Work& work, std::vector<int32_t>& out) const {
    // Bytes that are no UTF-8 are words of their own, beside which the text goes on.
    size_t begin = 0;
    while (begin < text.size()) {
      size_t end = begin;
      const bool valid = utf8_char(text, begin).valid;
      while (end < text.size()) {
        if (static_cast<uint8_t>(text[end]) < 0x80) {
          if (!valid) break;
          ++end;
          continue;
        }
        const Utf8Char c = utf8_char(text, end);
        if (c.valid != valid) break;
        end += c.length;
      }
      const std::string_view stretch = text.substr(begin, end - begin);
      begin = end;
      if (!valid) {
        merge(stretch, work, out);
        continue;
      }
      pre_.split(stretch, work.ends);
      size_t start = 0;
      for (const size_t word_end : work.ends) {
        encode_word(stretch.substr(start, word_end - start), work, out);
        start = word_end;
      }
    }
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
    if (pre_.whole_words_first()) {
      std::string text;
      for (const char c : word) append_utf8(text, alphabet().to_code[static_cast<uint8_t>(c)]);
      if (const int32_t id = vocab_.find(text); id >= 0 && !vocab_.hidden(id))
        return out.push_back(id);
    }
    const auto n = static_cast<int32_t>(word.size());
    auto& symbols = work.symbols;
    auto& previous = work.previous;
    auto& next = work.next;
    symbols.resize(word.size());
    previous.resize(word.size());
    next.resize(word.size());
    for (int32_t i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(i);
      symbols[at] = byte_symbols_[static_cast<uint8_t>(word[at])];
      previous[at] = i - 1;
      next[at] = i + 1 < n ? i + 1 : -1;
    }
    auto& heap = work.heap;
    heap.clear();
    const auto consider = [&](int32_t left) {
      if (left < 0) return;
      const int32_t right = next[static_cast<size_t>(left)];
      if (right < 0) return;
      const int32_t a = symbols[static_cast<size_t>(left)];
      const int32_t b = symbols[static_cast<size_t>(right)];
      if (const auto* m = merges_.find(a, b)) {
        heap.push_back({m->rank, left, a, b, m->result});
        std::push_heap(heap.begin(), heap.end(), std::greater<>());
      }
    };
    for (int32_t i = 0; i + 1 < n; ++i) consider(i);
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end(), std::greater<>());
      const Candidate c = heap.back();
      heap.pop_back();
      const auto left = static_cast<size_t>(c.left);
      // Entries whose symbols have been merged since are void.
      if (symbols[left] != c.left_symbol || next[left] < 0) continue;
      const auto right = static_cast<size_t>(next[left]);
      if (symbols[right] != c.right_symbol) continue;
      symbols[left] = c.result;
      symbols[right] = -1;
      next[left] = next[right];
      if (next[left] >= 0) previous[static_cast<size_t>(next[left])] = c.left;
      consider(previous[left]);
      consider(c.left);
    }
    for (int32_t i = n > 0 ? 0 : -1; i >= 0; i = next[static_cast<size_t>(i)])
      append_symbol(symbols[static_cast<size_t>(i)], out);
  }

  void append_symbol(int32_t symbol, std::vector<int32_t>& out) const {
    if (symbol < vocab_.size()) return out.push_back(symbol);
    // No token for the whole: one for each byte. A byte that has no token is left out, as the
    // reference tokenizers do (SmolLM2's vocabulary lacks 0x13 and 0xF1, among others).
    const std::string& text = extra_texts_[static_cast<size_t>(symbol - vocab_.size())];
    for (const char c : bytes_of(text))
      if (const int32_t id = byte_symbols_[static_cast<uint8_t>(c)]; id < vocab_.size())
        out.push_back(id);
  }

  // The bytes that a token's printable characters stand for; others stay as they are.
  static std::string bytes_of(const std::string& text) {
    std::string bytes;
    for (size_t at = 0; at < text.size();) {
      const Utf8Char c = utf8_char(text, at);
      const auto it = alphabet().to_byte.find(c.code);
      if (c.valid && it != alphabet().to_byte.end())
        bytes.push_back(static_cast<char>(it->second));
      else
        bytes.append(text, at, c.length);
      at += c.length;
    }
    return bytes;
  }

  Vocab vocab_;
  SpecialTokens special_;
  WordCutter pre_;
  std::array<int32_t, 256> byte_symbols_{};
  std::vector<std::string> extra_texts_;
  PairTable merges_;  // after what read_merges fills
  bool adds_bos_, adds_eos_;
};

}  // namespace

std::unique_ptr<Tokenizer> open_byte_bpe(const TensorFile& file) {
  return std::make_unique<ByteBpe>(file);
}

}  // namespace mt
