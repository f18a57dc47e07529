#pragma once
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "flow/tensor_file.h"

namespace mt {

// Maps a GGUF v2/v3 file. Nothing is copied but metadata; every size and offset is checked.
// Throws Error "FILE: gguf: PLACE: expected ..., found ...".
TensorFile read_gguf(const std::filesystem::path& path);
// The same from bytes (for tests and fuzzing); `owner` keeps them alive.
TensorFile parse_gguf(const std::string& path, SharedBytes bytes);

// A tensor to be written: its bytes are produced when their turn comes, so that no whole model is
// held in memory.
struct TensorSource {
  std::string name;
  std::vector<int64_t> shape;  // row-major, slowest first
  Dtype dtype;
  std::function<void(const std::function<void(std::span<const std::byte>)>& write)> produce;
};
// GGUF v3, alignment 32, through AtomicFile. Throws Error; asserts that produce wrote exactly the
// tensor's bytes. replace: as AtomicFile's.
void write_gguf(const std::filesystem::path& path,
                const std::vector<std::pair<std::string, MetaValue>>& metadata,
                const std::vector<TensorSource>& tensors, bool replace = true);
// Bytes of the file that write_gguf would write.
int64_t gguf_file_bytes(const std::vector<std::pair<std::string, MetaValue>>& metadata,
                        const std::vector<TensorSource>& tensors);

}  // namespace mt
