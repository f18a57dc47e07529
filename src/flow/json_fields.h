#pragma once
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace mt {

// JSON with its keys in the order they were written.
using Json = nlohmann::ordered_json;

// Parses untrusted text: at most 64 MB, at most 16 levels deep, no key twice in one object. Throws
// Error that names `path`.
Json parse_json(const std::string& text, const std::string& path);

// The fields of one JSON object, read with checks. Messages say "<path>: <where>.<field>: expected
// ..., found ...".
class Fields {
 public:
  // Throws Error where `object` is not an object, or has a field that is not in `known`.
  Fields(const Json& object, std::string path, std::string where,
         std::initializer_list<std::string_view> known);

  bool has(std::string_view field) const;
  // The field, or an Error where it is missing.
  const Json& need(std::string_view field) const;
  const Json& need_array(std::string_view field, size_t max_size) const;

  // Each gives `otherwise` where the field is missing and throws Error where it does not convert.
  std::string text(std::string_view field, const std::string& otherwise = "") const;
  int64_t integer(std::string_view field, int64_t low, int64_t high, int64_t otherwise) const;
  double number(std::string_view field, double otherwise) const;  // finite
  bool flag(std::string_view field, bool otherwise) const;

  std::string at(std::string_view field) const;  // "<path>: <where>.<field>", for messages
  const std::string& path() const { return path_; }

 private:
  const Json* find(std::string_view field) const;
  [[noreturn]] void wrong(std::string_view field, std::string_view expected) const;

  const Json& object_;
  std::string path_, where_;
};

// The last part of a path as text: of what is no UTF-8 there, U+FFFD is left.
std::string name_of_file(const std::filesystem::path& path);

// For messages: what a value is, shortened.
std::string describe(const Json& value);

}  // namespace mt
