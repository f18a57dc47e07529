#include "file/open.h"

#include <fstream>

#include "base/error.h"
#include "file/gguf.h"
#include "file/hf.h"
#include "file/split.h"

namespace mt {

namespace {

// Files of a cache have other names: the bytes tell.
bool begins_as_gguf(const std::filesystem::path& path) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(path, none)) return false;
  char magic[4] = {};
  std::ifstream(path, std::ios::binary).read(magic, sizeof magic);
  return std::string_view(magic, sizeof magic) == "GGUF";
}

}  // namespace

TensorFile open_model_file(const std::filesystem::path& path) {
  std::error_code none;
  if (!std::filesystem::exists(path, none))
    throw_error("{}: cannot be opened: No such file or directory", path.string());
  if (path.extension() == ".gguf" || begins_as_gguf(path)) {
    if (auto split = parse_split_name(path)) return read_split_gguf(*split);
    TensorFile file = read_gguf(path);
    if (file.get_int("split.count").value_or(1) > 1)
      throw_error(
          "{}: gguf: file name: expected NAME-00001-of-{:05}.gguf for a part of a set, found '{}'",
          path.string(), file.need_int("split.count"), path.filename().string());
    return file;
  }
  if (std::filesystem::is_directory(path)) return read_hf_folder(path);
  // A model's file or index, named in place of the folder that makes sense of it.
  const std::string name = path.filename().string();
  if (path.extension() == ".safetensors" || name.ends_with(".safetensors.index.json")) {
    auto folder = path.parent_path().empty() ? std::filesystem::path(".") : path.parent_path();
    if (!std::filesystem::exists(folder / "config.json"))
      throw_error("{}: expected config.json and tokenizer.json beside it, found none",
                  path.string());
    return read_hf_folder(folder);
  }
  throw_error("{}: expected a .gguf file, a .safetensors file or a Hugging Face folder, found {}",
              path.string(),
              path.has_extension() ? "'" + path.extension().string() + "'" : "none of them");
}

}  // namespace mt
