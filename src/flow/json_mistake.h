#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace mt {

// What was found in place of JSON, by the library's exception, in this program's words: "'x' at
// line 3, column 7", "text that ends unfinished after 20 bytes", "a number beyond a double's
// range".
std::string json_mistake(const nlohmann::json::exception& e, std::string_view text);

}  // namespace mt
