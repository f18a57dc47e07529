#pragma once
#include <filesystem>

#include "flow/tensor_file.h"

namespace mt {

// Opens any model: a .gguf (also the first of a split set "-00001-of-0000N.gguf"), or a Hugging
// Face folder or .safetensors. Throws Error. The TensorFile of a Hugging Face folder is already in
// GGUF terms: tensor names, metadata keys, tokenizer.ggml.*, rows of q and k permuted as the
// architecture's GGUF convention asks (file/hf.cpp).
TensorFile open_model_file(const std::filesystem::path& path);

}  // namespace mt
