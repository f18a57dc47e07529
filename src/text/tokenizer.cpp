#include "text/tokenizer.h"

#include "base/error.h"
#include "text/kinds.h"
#include "text/utf8.h"

namespace mt {

std::unique_ptr<Tokenizer> Tokenizer::open(const TensorFile& file) {
  const std::string model = file.need_string("tokenizer.ggml.model");
  if (model == "gpt2") return open_byte_bpe(file);
  if (model == "llama") return open_sentencepiece(file);
  if (model == "bert") return open_word_piece(file);
  throw_error(
      "{}: metadata 'tokenizer.ggml.model': unknown tokenizer '{}'; known: gpt2 (byte-level BPE), "
      "llama (SentencePiece), bert (WordPiece)",
      file.path, model);
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, bool special) const {
  std::string text;
  bool first = true;  // until a token that is not BOS or another control token
  for (const int32_t id : ids) {
    text += piece(id, special, first);
    if (!is_control(id)) first = false;
  }
  return text;
}

std::string Utf8Stream::push(std::string_view bytes) {
  pending_ += bytes;
  // Held back: an unfinished character at the end, at most three bytes.
  size_t keep = pending_.size();
  for (size_t back = 1; back <= 3 && back <= pending_.size(); ++back) {
    const char c = pending_[pending_.size() - back];
    if ((static_cast<uint8_t>(c) & 0xC0u) == 0x80u) continue;
    if (utf8_announced(c) > back) keep = pending_.size() - back;
    break;
  }
  std::string whole = pending_.substr(0, keep);
  pending_.erase(0, keep);
  std::string out;
  for (size_t at = 0; at < whole.size();) {
    const Utf8Char c = utf8_char(whole, at);
    if (c.valid)
      out.append(whole, at, c.length);
    else
      append_utf8(out, 0xFFFD);
    at += c.length;
  }
  return out;
}

std::string Utf8Stream::flush() {
  std::string out;
  if (!pending_.empty()) append_utf8(out, 0xFFFD);
  pending_.clear();
  return out;
}

}  // namespace mt
