#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace mt {

// A tokenizer.model: the protocol buffer that SentencePiece writes (sentencepiece_model.proto).
// Only what a tokenizer of GGUF needs of it.
struct SentencePiece {
  std::string text;
  float score = 0;
  int type = 1;  // 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte: as in GGUF
};
struct SentencePieceModel {
  std::vector<SentencePiece> pieces;
  int model_type = 1;  // 1 unigram, 2 BPE
  bool add_dummy_prefix = true;
};
// Throws Error "FILE: sentencepiece: ..." for bytes that are no such model.
SentencePieceModel parse_sentencepiece(const std::string& file, std::string_view bytes);
std::string write_sentencepiece(const SentencePieceModel& model);

}  // namespace mt
