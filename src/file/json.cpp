#include "file/json.h"

#include "base/error.h"
#include "base/files.h"
#include "flow/json_check.h"
#include "flow/json_mistake.h"

namespace mt {
namespace {
constexpr size_t kDeepest = 64;
constexpr size_t kLargest = size_t(256) << 20;
}  // namespace

nlohmann::json parse_json(const std::string& file, std::string_view text) {
  if (text.size() > kLargest)
    throw_error("{}: json: expected at most {} bytes, found {}", file, kLargest, text.size());
  using Json = nlohmann::json;
  const auto [problem, key] = JsonCheck::in(text, kDeepest, text.size());
  if (problem == JsonCheck::Problem::too_deep)
    throw_error("{}: json: near '{}': expected at most {} levels, found more", file,
                key.substr(0, 80), kDeepest);
  if (problem == JsonCheck::Problem::key_twice)
    throw_error("{}: json: expected every key once, found '{}' twice in one object", file,
                key.substr(0, 80));
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception& e) {
    throw_error("{}: json: expected JSON, found {}", file, json_mistake(e, text));
  }
}

nlohmann::json read_json_file(const std::filesystem::path& path) {
  auto file = MappedFile::open(path);
  auto bytes = file->bytes();
  return parse_json(path.string(), {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

const nlohmann::json* find_json(const nlohmann::json& root, std::string_view pointer) {
  const nlohmann::json* at = &root;
  while (!pointer.empty()) {
    pointer.remove_prefix(1);
    std::string_view step = pointer.substr(0, pointer.find('/'));
    pointer.remove_prefix(step.size());
    if (at->is_object()) {
      auto found = at->find(std::string(step));
      if (found == at->end()) return nullptr;
      at = &*found;
    } else if (at->is_array()) {
      size_t index = 0;
      for (char c : step) {
        if (c < '0' || c > '9' || index > at->size()) return nullptr;
        index = index * 10 + size_t(c - '0');
      }
      if (step.empty() || index >= at->size()) return nullptr;
      at = &(*at)[index];
    } else {
      return nullptr;
    }
  }
  return at->is_null() ? nullptr : at;
}

}  // namespace mt
