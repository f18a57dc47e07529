#pragma once
#include <filesystem>
#include <string>
#include <vector>

namespace mt {

// The files that a model's name stands for: itself; every part of a split set; of a Hugging Face
// folder (or a .safetensors file or index, which are read with what lies beside them) the tensors,
// configurations and vocabularies, in order of name.
std::vector<std::filesystem::path> model_files(const std::filesystem::path& path);

// Size and time of writing of every file of a model: mapped files that others write into are read
// as if they were the model, so who measures holds the state at the end against that at the start.
std::string model_state(const std::filesystem::path& path);

// SHA-256: of a single file; of several: of their names and hashes. What measurements and receipts
// are keyed by. Throws Error.
std::string model_sha256(const std::filesystem::path& path);

}  // namespace mt
