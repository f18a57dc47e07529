#include "file/model_hash.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/files.h"
#include "file/split.h"

namespace mt {

std::vector<std::filesystem::path> model_files(const std::filesystem::path& path) {
  if (const auto split = parse_split_name(path)) {
    std::vector<std::filesystem::path> parts;
    // The count is the name's word; a set with a part missing does not open.
    for (int i = 1; i <= split->count && std::filesystem::exists(split->path(i)); ++i)
      parts.push_back(split->path(i));
    return parts;
  }
  std::filesystem::path folder = path;
  const std::string name = path.filename().string();
  if (path.extension() == ".safetensors" || name.ends_with(".safetensors.index.json"))
    folder = path.parent_path().empty() ? "." : path.parent_path();
  if (!std::filesystem::is_directory(folder)) return {path};
  static const std::set<std::string> others{"merges.txt", "tokenizer.model", "vocab.txt"};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const auto extension = entry.path().extension();
    if (entry.is_regular_file() && (extension == ".safetensors" || extension == ".json" ||
                                    others.contains(entry.path().filename().string())))
      files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end(),
            [](const auto& a, const auto& b) { return a.filename() < b.filename(); });
  return files;
}

std::string model_state(const std::filesystem::path& path) {
  std::string state;
  for (const auto& file : model_files(path))
    state += fmt::format("{} {} {}\n", file.string(), std::filesystem::file_size(file),
                         std::filesystem::last_write_time(file).time_since_epoch().count());
  return state;
}

std::string model_sha256(const std::filesystem::path& path) {
  const auto files = model_files(path);
  if (files.size() == 1 && files.front() == path)
    return sha256_hex(MappedFile::open(path)->bytes());
  std::string list;
  for (const auto& file : files)
    list += file.filename().string() + " " + sha256_hex(MappedFile::open(file)->bytes()) + "\n";
  return sha256_hex(list);
}

}  // namespace mt
