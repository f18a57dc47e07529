#pragma once
#include <filesystem>

#include "file/gguf.h"
#include "flow/tensor_file.h"

namespace mt {

// One .safetensors file, or a sharded one by its model.safetensors.index.json. metadata holds the
// file's __metadata__ strings. Throws Error as read_gguf does.
TensorFile read_safetensors(const std::filesystem::path& path);
TensorFile parse_safetensors(const std::string& path, SharedBytes bytes);
// F32, F16, BF16 (and integer) tensors. Through AtomicFile.
void write_safetensors(const std::filesystem::path& path,
                       const std::vector<std::pair<std::string, std::string>>& metadata,
                       const std::vector<TensorSource>& tensors);

}  // namespace mt
