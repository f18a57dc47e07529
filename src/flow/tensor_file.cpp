#include "flow/tensor_file.h"

#include <type_traits>

#include "base/error.h"

namespace mt {

const MetaValue* TensorFile::find_meta(std::string_view key) const {
  for (const auto& [k, v] : metadata)
    if (k == key) return &v;
  return nullptr;
}

const Tensor* TensorFile::find_tensor(std::string_view name) const {
  for (const auto& t : tensors)
    if (t.name == name) return &t;
  return nullptr;
}

void TensorFile::set_meta(std::string_view key, MetaValue value) {
  for (auto& [k, v] : metadata)
    if (k == key) {
      v = std::move(value);
      return;
    }
  metadata.emplace_back(std::string(key), std::move(value));
}

namespace {
[[noreturn]] void wrong_type(const TensorFile& f, std::string_view key, const char* expected) {
  throw_error("{}: metadata '{}': expected {}, found another type", f.path, key, expected);
}
}  // namespace

std::optional<int64_t> TensorFile::get_int(std::string_view key) const {
  const MetaValue* v = find_meta(key);
  if (!v) return std::nullopt;
  return std::visit(
      [&](const auto& x) -> std::optional<int64_t> {
        using T = std::decay_t<decltype(x)>;
        if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
          if constexpr (std::is_same_v<T, uint64_t>)
            if (x > static_cast<uint64_t>(INT64_MAX)) wrong_type(*this, key, "an integer in range");
          return static_cast<int64_t>(x);
        }
        wrong_type(*this, key, "an integer");
      },
      v->value);
}

std::optional<double> TensorFile::get_float(std::string_view key) const {
  const MetaValue* v = find_meta(key);
  if (!v) return std::nullopt;
  return std::visit(
      [&](const auto& x) -> std::optional<double> {
        using T = std::decay_t<decltype(x)>;
        if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>)
          return static_cast<double>(x);
        wrong_type(*this, key, "a number");
      },
      v->value);
}

std::optional<bool> TensorFile::get_bool(std::string_view key) const {
  const MetaValue* v = find_meta(key);
  if (!v) return std::nullopt;
  if (const bool* b = std::get_if<bool>(&v->value)) return *b;
  wrong_type(*this, key, "a boolean");
}

std::optional<std::string> TensorFile::get_string(std::string_view key) const {
  const MetaValue* v = find_meta(key);
  if (!v) return std::nullopt;
  if (const std::string* s = std::get_if<std::string>(&v->value)) return *s;
  wrong_type(*this, key, "a string");
}

const std::vector<std::string>* TensorFile::get_strings(std::string_view key) const {
  const MetaValue* v = find_meta(key);
  if (!v) return nullptr;
  if (const auto* s = std::get_if<MetaValue::Strings>(&v->value)) return s;
  wrong_type(*this, key, "an array of strings");
}

std::optional<std::vector<double>> TensorFile::get_numbers(std::string_view key) const {
  const MetaValue* v = find_meta(key);
  if (!v) return std::nullopt;
  return std::visit(
      [&](const auto& x) -> std::optional<std::vector<double>> {
        using T = std::decay_t<decltype(x)>;
        if constexpr (!std::is_arithmetic_v<T> && !std::is_same_v<T, std::string> &&
                      !std::is_same_v<T, MetaValue::Strings>)
          return std::vector<double>(x.begin(), x.end());
        wrong_type(*this, key, "an array of numbers");
      },
      v->value);
}

int64_t TensorFile::need_int(std::string_view key) const {
  auto v = get_int(key);
  if (!v) throw_error("{}: metadata '{}' is missing", path, key);
  return *v;
}

std::string TensorFile::need_string(std::string_view key) const {
  auto v = get_string(key);
  if (!v) throw_error("{}: metadata '{}' is missing", path, key);
  return *v;
}

}  // namespace mt
