#include "file/open.h"

#include "base/error.h"
#include "file/gguf.h"
#include "file/split.h"

namespace mt {

TensorFile open_model_file(const std::filesystem::path& path) {
  if (path.extension() == ".gguf") {
    if (auto split = parse_split_name(path)) return read_split_gguf(*split);
    TensorFile file = read_gguf(path);
    if (file.get_int("split.count").value_or(1) > 1)
      throw_error(
          "{}: gguf: file name: expected NAME-00001-of-{:05}.gguf for a part of a set, found '{}'",
          path.string(), file.need_int("split.count"), path.filename().string());
    return file;
  }
  throw_error("{}: expected a .gguf file, a .safetensors file or a Hugging Face folder, found {}",
              path.string(),
              path.has_extension() ? "'" + path.extension().string() + "'" : "none of them");
}

}  // namespace mt
