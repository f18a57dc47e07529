#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "flow/tensor_file.h"

namespace mt {

// Text <-> ids, built from the model's own metadata (tokenizer.ggml.*). Immutable, thread-safe.
class Tokenizer {
 public:
  // Throws Error naming file and key: unknown tokenizer.ggml.model or pre-tokenizer, sizes that
  // do not match, ids outside the vocabulary.
  static std::unique_ptr<Tokenizer> open(const TensorFile& file);
  virtual ~Tokenizer() = default;

  // `special`: text of control and user-defined tokens becomes their ids ("<|im_start|>");
  // otherwise only user-defined ones do. Never adds BOS or EOS by itself. Invalid UTF-8 is
  // tokenized byte by byte, never refused.
  virtual std::vector<int32_t> encode(std::string_view text, bool special) const = 0;
  // The bytes that one id stands for (may be part of a UTF-8 character). Control tokens give ""
  // unless `special`. `first`: at the start of a text (SentencePiece drops one leading space).
  virtual std::string piece(int32_t id, bool special, bool first = false) const = 0;
  std::string decode(const std::vector<int32_t>& ids, bool special = false) const;

  virtual int32_t n_vocab() const = 0;
  virtual bool is_control(int32_t id) const = 0;
  virtual bool is_end(int32_t id) const = 0;  // EOS, EOT, <|im_end|>, <end_of_turn> ...
  // -1 where there is none
  virtual int32_t bos() const = 0;
  virtual int32_t eos() const = 0;
  virtual bool adds_bos() const = 0;  // tokenizer.ggml.add_bos_token, or the family's default
  virtual bool adds_eos() const = 0;
};

// Gives whole UTF-8 characters from a stream of pieces.
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);  // what is complete so far
  std::string flush();                       // the rest, incomplete bytes as U+FFFD
 private:
  std::string pending_;
};

}  // namespace mt
