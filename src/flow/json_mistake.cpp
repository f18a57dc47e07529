#include "flow/json_mistake.h"

#include <fmt/format.h>

#include <algorithm>

namespace mt {

std::string json_mistake(const nlohmann::json::exception& e, std::string_view text) {
  const auto* parse = dynamic_cast<const nlohmann::json::parse_error*>(&e);
  if (!parse) return "a number beyond a double's range";
  if (text.find_first_not_of(" \t\r\n") == text.npos) return "nothing";
  if (parse->byte > text.size() || parse->byte == 0)
    return fmt::format("text that ends unfinished after {} bytes", text.size());
  const size_t at = parse->byte - 1;  // counted from 1, the last byte read
  const std::string_view before = text.substr(0, at);
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const size_t column = at - (before.rfind('\n') + 1) + 1;  // npos + 1 is 0
  const auto byte = static_cast<unsigned char>(text[at]);
  return byte > 0x20 && byte < 0x7f
             ? fmt::format("'{}' at line {}, column {}", text[at], line, column)
             : fmt::format("byte 0x{:02x} at line {}, column {}", byte, line, column);
}

}  // namespace mt
