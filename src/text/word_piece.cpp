// WordPiece (Schuster and Nakajima 2012; as BERT uses it, Devlin et al. 2018): normalised text
// falls into words and single punctuation marks; each word is covered from the left by the longest
// pieces of the vocabulary, and is unknown as a whole where that does not come out. In GGUF a piece
// that begins a word carries U+2581, one that goes on carries nothing.
#include <algorithm>
#include <string>
#include <unordered_map>
#include <utility>

#include "text/kinds.h"
#include "text/normalisation.h"
#include "text/utf8.h"
#include "text/vocab.h"

namespace mt {
namespace {

using normalisation::CharKind;

constexpr std::string_view kWordMark = "\xe2\x96\x81";
constexpr size_t kLongestWord = 100;  // characters; longer ones are unknown

class WordPiece final : public Tokenizer {
 public:
  explicit WordPiece(const TensorFile& file)
      : vocab_(file, "bert"),
        special_(vocab_),
        adds_bos_(file.get_bool("tokenizer.ggml.add_bos_token").value_or(true)),
        // Files made before add_eos_token was written for BERT may say add_sep_token.
        adds_eos_(file.get_bool("tokenizer.ggml.add_eos_token")
                      .value_or(file.get_bool("tokenizer.ggml.add_sep_token").value_or(true))),
        lower_case_(file.get_bool("tokenizer.ggml.normalizer.lowercase").value_or(true)),
        strip_accents_(
            file.get_bool("tokenizer.ggml.normalizer.strip_accents").value_or(lower_case_)) {}

  std::vector<int32_t> encode(std::string_view text, bool special) const override {
    Work work;
    std::vector<int32_t> out;
    out.reserve(text.size() / 4);
    for (const auto& fragment : special_.split(text, special)) {
      if (fragment.id >= 0)
        out.push_back(fragment.id);
      else
        encode_text(fragment.text, work, out);
    }
    return out;
  }

  std::string piece(int32_t id, bool special, bool first) const override {
    if (id < 0 || id >= vocab_.size()) return "";
    const std::string& text = vocab_.text(id);
    if (vocab_.hidden(id)) return special ? text : "";
    if (!text.starts_with(kWordMark)) return text;
    return (first ? "" : " ") + text.substr(kWordMark.size());
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
  struct Work {
    std::string word{kWordMark};  // with the mark, so that its beginning is looked up as it stands
    size_t n_chars = 0;
    std::unordered_map<std::string, std::vector<int32_t>> seen;
  };
  static constexpr size_t kSeenMost = 1u << 16;

  void encode_text(std::string_view text, Work& work, std::vector<int32_t>& out) const {
    for (size_t at = 0; at < text.size();) {
      const Utf8Char c = utf8_char(text, at);
      at += c.length;
      if (!c.valid) continue;  // as U+FFFD, which is dropped
      const CharKind kind = normalisation::kind(c.code);
      if (kind == CharKind::Dropped) continue;
      if (kind == CharKind::Space) {
        end_word(work, out);
        continue;
      }
      const bool alone = normalisation::is_ideograph(c.code);
      if (alone) end_word(work, out);
      if (strip_accents_) {
        const auto few = normalisation::without_accents(c.code);
        for (uint32_t i = 0; i < few.count; ++i) add_lowered(few.codes[i], work, out);
      } else {
        add_lowered(c.code, work, out);
      }
      if (alone) end_word(work, out);
    }
    end_word(work, out);
  }

  void add_lowered(uint32_t code, Work& work, std::vector<int32_t>& out) const {
    if (!lower_case_) return add(code, work, out);
    const auto few = normalisation::lower_case(code);
    for (uint32_t i = 0; i < few.count; ++i) add(few.codes[i], work, out);
  }

  void add(uint32_t code, Work& work, std::vector<int32_t>& out) const {
    const CharKind kind = normalisation::kind(code);  // decompositions give ';' and the like
    if (kind == CharKind::Space) return end_word(work, out);
    if (kind == CharKind::Punctuation) end_word(work, out);
    // A word that is too long is unknown whatever follows: no need to keep it.
    if (++work.n_chars <= kLongestWord) append_utf8(work.word, code);
    if (kind == CharKind::Punctuation) end_word(work, out);
  }

  void end_word(Work& work, std::vector<int32_t>& out) const {
    if (work.n_chars == 0) return;
    if (work.n_chars > kLongestWord) {
      push_unknown(out);
    } else if (const auto it = work.seen.find(work.word); it != work.seen.end()) {
      out.insert(out.end(), it->second.begin(), it->second.end());
    } else {
      const size_t before = out.size();
      cover(work.word, out);
      if (work.seen.size() < kSeenMost)
        work.seen.emplace(work.word, std::vector<int32_t>(
                                         out.begin() + static_cast<ptrdiff_t>(before), out.end()));
    }
    work.word.resize(kWordMark.size());
    work.n_chars = 0;
  }

  void cover(std::string_view word, std::vector<int32_t>& out) const {
    const size_t before = out.size();
    for (size_t begin = 0; begin < word.size();) {
      // The word's mark alone is no piece of it.
      const size_t least = begin == 0 ? kWordMark.size() : begin;
      size_t end = std::min(word.size(), begin + vocab_.longest);
      // A mark within a word is a character of the text: pieces that begin words do not go there.
      if (begin > 0 && word.substr(begin).starts_with(kWordMark))
        end = std::min(end, begin + kWordMark.size());
      int32_t id = -1;
      for (; end > least; --end) {
        if (end < word.size() && (static_cast<uint8_t>(word[end]) & 0xC0u) == 0x80u) continue;
        id = vocab_.find(word.substr(begin, end - begin));
        if (id >= 0 && !vocab_.hidden(id)) break;
        id = -1;
      }
      if (id < 0) {
        out.resize(before);
        return push_unknown(out);
      }
      out.push_back(id);
      begin = end;
    }
  }

  void push_unknown(std::vector<int32_t>& out) const {
    if (vocab_.unknown >= 0) out.push_back(vocab_.unknown);
  }

  Vocab vocab_;
  SpecialTokens special_;
  bool adds_bos_, adds_eos_, lower_case_, strip_accents_;
};

}  // namespace

std::unique_ptr<Tokenizer> open_word_piece(const TensorFile& file) {
  return std::make_unique<WordPiece>(file);
}

}  // namespace mt
