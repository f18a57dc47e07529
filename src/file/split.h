#pragma once
#include <filesystem>
#include <optional>

#include "flow/tensor_file.h"

namespace mt {

// "NAME-00001-of-00003.gguf": the part's place in its set.
struct SplitName {
  std::filesystem::path prefix;
  int part = 0;  // from 1
  int count = 0;
  std::filesystem::path path(int which) const;
};
std::optional<SplitName> parse_split_name(const std::filesystem::path& path);

// All parts as one: the first one's metadata without split.*, the tensors of all. Throws Error
// where a part is missing, out of its place, or the parts' tensors are not what the set announces.
TensorFile read_split_gguf(const SplitName& name);

}  // namespace mt
