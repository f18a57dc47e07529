#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace mt {

// What the library's exception says of `text`, in this program's words: "found 'x' at line 3,
// column 7", "the text ends within it", "a number beyond a double's range".
std::string json_mistake(const nlohmann::json::exception& e, std::string_view text);

}  // namespace mt
