#include "plan/tensor_types.h"

#include <string_view>

#include "base/error.h"

namespace mt {
namespace {

// An ECMAScript pattern that matches the name alone.
std::string pattern_of(const std::string& place) {
  std::string pattern = "^";
  for (const char c : place) {
    if (c == '=' || c == ' ' || static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      throw_error(
          "tensor types: '{}' holds '=', a space or a control character, which the quantizer's "
          "lists cannot carry",
          place);
    if (c >= 'A' && c <= 'Z') {
      pattern += '.';
      continue;
    }
    if (std::string_view(".^$|()[]{}*+?\\/").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern + "$";
}

std::string lower(std::string_view text) {
  std::string low(text);
  for (char& c : low)
    if (c >= 'A' && c <= 'Z') c = char(c - 'A' + 'a');
  return low;
}

std::string quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? "'\\''" : std::string(1, c);
  return out + "'";
}

}  // namespace

std::vector<std::string> tensor_types(const Plan& plan) {
  std::vector<std::string> lines;
  for (const Decision& d : plan.decisions)
    lines.push_back(pattern_of(d.place) + "=" + lower(name(d.chosen.dtype)));
  return lines;
}

std::string tensor_type_file(const Plan& plan) {
  std::string text;
  for (const auto& line : tensor_types(plan)) text += line + "\n";
  return text;
}

std::string tensor_type_arguments(const Plan& plan) {
  std::string text;
  for (const auto& line : tensor_types(plan))
    text += (text.empty() ? "" : " ") + ("--tensor-type " + quoted(line));
  return text;
}

}  // namespace mt
