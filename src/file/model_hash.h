#pragma once
#include <filesystem>
#include <string>

namespace mt {

// The SHA-256 of a model file; of a folder: of the names and hashes of its .safetensors and .json
// files in order of name. What measurements and receipts are keyed by. Throws Error.
std::string model_sha256(const std::filesystem::path& path);

}  // namespace mt
