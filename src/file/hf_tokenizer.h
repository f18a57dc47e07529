#pragma once
#include <filesystem>

#include "file/hf_config.h"
#include "flow/tensor_file.h"

namespace mt {

// tokenizer.ggml.* and tokenizer.chat_template of a folder: byte-level BPE ("gpt2", with the
// pre-tokenizer recognised by its pattern), SentencePiece BPE ("llama"; scores from tokenizer.model
// or from the order of merges), WordPiece ("bert"). n_vocab: rows of the embedding; ids that no
// token has become "[PADn]". Throws Error.
void add_hf_tokenizer(const std::filesystem::path& folder, const HfConfig& config, int64_t n_vocab,
                      TensorFile& out);

// The way back: tokenizer.json, tokenizer_config.json and, for SentencePiece, tokenizer.model;
// ids of special tokens also into `config`. Throws Error for a tokenizer that has no such form.
void write_hf_tokenizer(const std::filesystem::path& folder, const TensorFile& file,
                        nlohmann::ordered_json& config);

// A byte-level pre-tokenizer: its GGUF name and the tokenizers library's JSON of it.
struct PreTokenizer {
  std::string_view name;
  std::string_view signature;  // what recognises it, see hf_pre.cpp
  std::string_view json;
  std::string_view normalizer;  // JSON
  bool ignore_merges = false;   // whole words of the vocabulary are taken before merging
  bool adds_bos = false;        // where the metadata are silent
};
// Throws Error naming the structure where it is not known.
const PreTokenizer& recognise_pre_tokenizer(const std::string& file, const nlohmann::json& pre);
const PreTokenizer* find_pre_tokenizer(std::string_view name);
std::string pre_tokenizer_names();

// Token types of GGUF.
enum TokenType : int32_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

// Special tokens: their names in tokenizer_config.json ("bos_token") and in GGUF.
struct SpecialToken {
  std::string_view hf;
  std::string_view gguf;
};
inline constexpr SpecialToken kSpecialTokens[] = {
    {"bos", "tokenizer.ggml.bos_token_id"},     {"eos", "tokenizer.ggml.eos_token_id"},
    {"unk", "tokenizer.ggml.unknown_token_id"}, {"sep", "tokenizer.ggml.seperator_token_id"},
    {"pad", "tokenizer.ggml.padding_token_id"}, {"mask", "tokenizer.ggml.mask_token_id"},
    {"eot", "tokenizer.ggml.eot_token_id"},
};
inline constexpr std::string_view kLowLine = "\xE2\x96\x81";  // U+2581, SentencePiece's space

}  // namespace mt
