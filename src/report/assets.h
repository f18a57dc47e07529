#pragma once
#include <string_view>

namespace mt {

// Files that lie in the program: the parts of the HTML page and Chart.js (MIT, with its notice).
std::string_view page_html();
std::string_view page_css();
std::string_view page_js();
std::string_view chart_js();

}  // namespace mt
