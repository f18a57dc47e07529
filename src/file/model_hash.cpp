#include "file/model_hash.h"

#include <map>

#include "base/files.h"

namespace mt {

std::string model_sha256(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path)) return sha256_hex(MappedFile::open(path)->bytes());
  std::map<std::string, std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    const auto extension = entry.path().extension();
    if (entry.is_regular_file() && (extension == ".safetensors" || extension == ".json"))
      files[entry.path().filename().string()] = entry.path();
  }
  std::string list;
  for (const auto& [name, file] : files)
    list += name + " " + sha256_hex(MappedFile::open(file)->bytes()) + "\n";
  return sha256_hex(list);
}

}  // namespace mt
