#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mt {

// One step through UTF-8 text. An ill-formed byte is a step of one byte with `valid` false
// (overlong forms, surrogates and values above U+10FFFF are ill-formed: Unicode 15, table 3-7).
struct Utf8Char {
  uint32_t code = 0;
  uint32_t length = 1;
  bool valid = false;
};
Utf8Char utf8_char(std::string_view text, size_t at);

void append_utf8(std::string& out, uint32_t code);

// How many bytes a character announces by its first byte: 1 for ASCII and for stray bytes.
inline uint32_t utf8_announced(char first) {
  const auto b = static_cast<uint8_t>(first);
  return b < 0xC0 ? 1 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
}

}  // namespace mt
