#include "file/open.h"

#include "base/error.h"
#include "file/gguf.h"

namespace mt {

TensorFile open_model_file(const std::filesystem::path& path) {
  if (path.extension() == ".gguf") return read_gguf(path);
  throw_error("{}: expected a .gguf file, a .safetensors file or a Hugging Face folder, found {}",
              path.string(),
              path.has_extension() ? "'" + path.extension().string() + "'" : "none of them");
}

}  // namespace mt
