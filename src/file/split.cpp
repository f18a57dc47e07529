#include "file/split.h"

#include <algorithm>

#include "base/error.h"
#include "file/gguf.h"
#include "file/names.h"

namespace mt {
namespace {

constexpr std::string_view kNumber = "split.no";
constexpr std::string_view kCount = "split.count";
constexpr std::string_view kTensors = "split.tensors.count";

void expect(const TensorFile& part, std::string_view key, int64_t expected) {
  int64_t found = part.need_int(key);
  if (found != expected)
    throw_error("{}: gguf: metadata '{}': expected {}, found {}", part.path, key, expected, found);
}

}  // namespace

std::optional<SplitName> parse_split_name(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  constexpr std::string_view shape = "-00000-of-00000.gguf";
  if (name.size() <= shape.size()) return std::nullopt;
  const size_t start = name.size() - shape.size();
  int numbers[2] = {0, 0};
  for (size_t i = 0; i < shape.size(); ++i) {
    const char c = name[start + i];
    if (shape[i] != '0') {
      if (c != shape[i]) return std::nullopt;
    } else {
      if (c < '0' || c > '9') return std::nullopt;
      int& n = numbers[i > 6];
      n = n * 10 + (c - '0');
    }
  }
  return SplitName{path.parent_path() / name.substr(0, start), numbers[0], numbers[1]};
}

std::filesystem::path SplitName::path(int which) const {
  return prefix.string() + fmt::format("-{:05}-of-{:05}.gguf", which, count);
}

TensorFile read_split_gguf(const SplitName& name) {
  TensorFile whole;
  if (name.part < 1 || name.part > name.count)
    throw_error("{}: gguf: file name: expected a part of 1 to {}, found {}",
                name.path(name.part).string(), name.count, name.part);
  int64_t announced = 0;
  for (int part = 1; part <= name.count; ++part) {
    TensorFile file = read_gguf(name.path(part));
    expect(file, kNumber, part - 1);
    expect(file, kCount, name.count);
    if (part == 1) {
      announced = file.need_int(kTensors);
      whole = std::move(file);
      continue;
    }
    std::move(file.tensors.begin(), file.tensors.end(), std::back_inserter(whole.tensors));
  }
  std::vector<std::string_view> names;
  for (const Tensor& t : whole.tensors) names.push_back(t.name);
  if (auto twice = find_duplicate(std::move(names)))
    throw_error("{}: gguf: split set: expected every tensor once, found '{}' twice", whole.path,
                printable(*twice));
  if (announced != static_cast<int64_t>(whole.tensors.size()))
    throw_error("{}: gguf: metadata '{}': expected {} (as the parts hold), found {}", whole.path,
                kTensors, whole.tensors.size(), announced);
  std::erase_if(whole.metadata,
                [](const auto& entry) { return entry.first.starts_with("split."); });
  return whole;
}

}  // namespace mt
