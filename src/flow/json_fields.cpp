#include "flow/json_fields.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "flow/json_check.h"
#include "flow/json_mistake.h"

namespace mt {
namespace {

constexpr size_t max_text = size_t{64} << 20;
constexpr size_t max_depth = 16, max_keys = 10'000;

}  // namespace

Json parse_json(const std::string& text, const std::string& path) {
  if (text.size() > max_text)
    throw_error("{}: {} bytes of JSON, expected at most {}", path, text.size(), max_text);
  const auto [problem, key] = JsonCheck::in(text, max_depth, max_keys);
  if (problem == JsonCheck::Problem::too_deep)
    throw_error("{}: JSON deeper than {} levels", path, max_depth);
  if (problem == JsonCheck::Problem::key_twice)
    throw_error("{}: key '{}' twice in one object", path, key);
  if (problem == JsonCheck::Problem::too_many_keys)
    throw_error("{}: more than {} keys in one object", path, max_keys);
  try {
    return Json::parse(text);
  } catch (const Json::exception& e) {
    throw_error("{}: not JSON: found {}", path, json_mistake(e, text));
  }
}

std::string name_of_file(const std::filesystem::path& path) {
  const Json name = path.filename().string();
  return Json::parse(name.dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
}

std::string describe(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return fmt::format("an array of {}", value.size());
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

Fields::Fields(const Json& object, std::string path, std::string where,
               std::initializer_list<std::string_view> known)
    : object_(object), path_(std::move(path)), where_(std::move(where)) {
  const std::string place = where_.empty() ? path_ : path_ + ": " + where_;
  if (!object.is_object()) throw_error("{}: expected an object, found {}", place, describe(object));
  for (const auto& [key, value] : object.items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      throw_error("{}: unknown field '{}'; known are {}", place, key, fmt::join(known, ", "));
}

std::string Fields::at(std::string_view field) const {
  return where_.empty() ? fmt::format("{}: {}", path_, field)
                        : fmt::format("{}: {}.{}", path_, where_, field);
}

const Json* Fields::find(std::string_view field) const {
  const auto it = object_.find(std::string(field));
  return it == object_.end() ? nullptr : &*it;
}

bool Fields::has(std::string_view field) const {
  return find(field) != nullptr;
}

const Json& Fields::need(std::string_view field) const {
  const Json* value = find(field);
  if (!value) throw_error("{}: missing", at(field));
  return *value;
}

void Fields::wrong(std::string_view field, std::string_view expected) const {
  throw_error("{}: expected {}, found {}", at(field), expected, describe(*find(field)));
}

const Json& Fields::need_array(std::string_view field, size_t max_size) const {
  const Json& value = need(field);
  if (!value.is_array()) wrong(field, "an array");
  if (value.size() > max_size) wrong(field, fmt::format("at most {} entries", max_size));
  return value;
}

std::string Fields::text(std::string_view field, const std::string& otherwise) const {
  const Json* value = find(field);
  if (!value) return otherwise;
  if (!value->is_string()) wrong(field, "a string");
  return value->get<std::string>();
}

int64_t Fields::integer(std::string_view field, int64_t low, int64_t high,
                        int64_t otherwise) const {
  const Json* value = find(field);
  if (!value) return otherwise;
  const bool fits = value->is_number_unsigned() ? value->get<uint64_t>() <= uint64_t(INT64_MAX)
                                                : value->is_number_integer();
  if (!fits || value->get<int64_t>() < low || value->get<int64_t>() > high)
    wrong(field, fmt::format("an integer from {} to {}", low, high));
  return value->get<int64_t>();
}

double Fields::number(std::string_view field, double otherwise) const {
  const Json* value = find(field);
  if (!value) return otherwise;
  if (!value->is_number() || !std::isfinite(value->get<double>())) wrong(field, "a finite number");
  return value->get<double>();
}

bool Fields::flag(std::string_view field, bool otherwise) const {
  const Json* value = find(field);
  if (!value) return otherwise;
  if (!value->is_boolean()) wrong(field, "true or false");
  return value->get<bool>();
}

}  // namespace mt
