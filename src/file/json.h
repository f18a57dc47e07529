#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace mt {

// JSON from an untrusted file. Throws Error "FILE: json: ...": no JSON, nested deeper than 64, an
// object with a key twice (of which nlohmann would silently keep one), larger than 256 MiB.
nlohmann::json parse_json(const std::string& file, std::string_view text);
nlohmann::json read_json_file(const std::filesystem::path& path);

// file:/a/b/0 -> the value, nullptr where it is absent or null.
const nlohmann::json* find_json(const nlohmann::json& root, std::string_view pointer);

}  // namespace mt
