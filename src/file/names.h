#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mt {

// No overlong forms, no surrogates, nothing above U+10FFFF (RFC 3629).
bool is_utf8(std::string_view text);
// A name from an untrusted file, made fit for a message: cut at 80 bytes, control bytes and invalid
// UTF-8 as \xNN.
std::string printable(std::string_view name);
// A name that occurs twice. O(n log n) whatever the names are.
std::optional<std::string_view> find_duplicate(std::vector<std::string_view> names);

}  // namespace mt
