#include "file/names.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

namespace mt {
namespace {

// Bytes of the well-formed character at `text[i]`, 0 where there is none.
size_t character_length(std::string_view text, size_t i) {
  auto byte = [&](size_t j) { return static_cast<uint8_t>(text[j]); };
  uint8_t lead = byte(i);
  if (lead < 0x80) return 1;
  size_t n = lead >= 0xC2 && lead <= 0xDF ? 2 : lead >= 0xE0 && lead <= 0xEF ? 3 : 4;
  if (lead < 0xC2 || lead > 0xF4 || text.size() - i < n) return 0;
  // The second byte's range keeps out overlong forms, surrogates and what exceeds U+10FFFF.
  uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (byte(i + 1) < low || byte(i + 1) > high) return 0;
  for (size_t j = 2; j < n; ++j)
    if ((byte(i + j) & 0xC0) != 0x80) return 0;
  return n;
}

}  // namespace

bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    size_t n = character_length(text, i);
    if (n == 0) return false;
    i += n;
  }
  return true;
}

std::string printable(std::string_view name) {
  constexpr size_t kLongest = 80;
  std::string shown;
  size_t i = 0;
  while (i < name.size() && shown.size() < kLongest) {
    size_t n = character_length(name, i);
    if (n == 0 || (n == 1 && (static_cast<uint8_t>(name[i]) < 0x20 || name[i] == 0x7F))) {
      shown += fmt::format("\\x{:02x}", static_cast<uint8_t>(name[i]));
      ++i;
    } else {
      shown += name.substr(i, n);
      i += n;
    }
  }
  if (i < name.size()) shown += "...";
  return shown;
}

std::optional<std::string_view> find_duplicate(std::vector<std::string_view> names) {
  std::sort(names.begin(), names.end());
  auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice == names.end()) return std::nullopt;
  return *twice;
}

}  // namespace mt
