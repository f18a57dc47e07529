#pragma once
#include <filesystem>

#include "flow/tensor_file.h"

namespace mt {

// A Hugging Face folder (config.json, model.safetensors or its shards, tokenizer.json or
// tokenizer.model, tokenizer_config.json) in GGUF terms: names and metadata as llama.cpp's
// converter gives them. Vectors are F32, rows of q and k are permuted where the family asks it
// (both in memory of their own); all other weights stay mapped as they are. Families: file/hf_arch.
// Throws Error: an unknown class, tensor, tokenizer; sizes that do not agree.
TensorFile read_hf_folder(const std::filesystem::path& folder);

// The way back: config.json, model.safetensors, tokenizer.json, tokenizer_config.json (and
// tokenizer.model for SentencePiece vocabularies) in `folder`, which is made if absent. Matrices
// are decoded to `dtype` (F32, F16 or BF16), vectors to F32, row by row. Reading the folder again
// gives the same tokenizer metadata and, with F32, the same decoded weights (Gemma's norm gains
// below 0.5 to within 2^-25, since the folder holds them less one). Throws Error for an
// architecture or a setting that has no such form.
void write_hf_folder(const std::filesystem::path& folder, const TensorFile& file, Dtype dtype);

}  // namespace mt
