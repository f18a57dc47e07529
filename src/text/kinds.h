#pragma once
#include <memory>

#include "text/tokenizer.h"

namespace mt {

// The kinds of tokenizer behind Tokenizer::open, by tokenizer.ggml.model.
std::unique_ptr<Tokenizer> open_byte_bpe(const TensorFile& file);       // "gpt2"
std::unique_ptr<Tokenizer> open_sentencepiece(const TensorFile& file);  // "llama"
std::unique_ptr<Tokenizer> open_word_piece(const TensorFile& file);     // "bert"

}  // namespace mt
