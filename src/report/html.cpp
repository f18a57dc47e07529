#include "report/html.h"

#include <string_view>

#include "base/error.h"
#include "file/names.h"
#include "report/assets.h"
#include "report/report_json.h"

namespace mt {
namespace {

std::string escaped(std::string_view text) {
  std::string out;
  const bool readable = is_utf8(text);
  for (const char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\0':
        out += "?";
        break;
      default:
        out += readable || static_cast<unsigned char>(c) < 0x80 ? c : '?';
    }
  }
  return out;
}

std::string file_name(const std::string& path) {
  return path.substr(path.find_last_of('/') + 1);
}

}  // namespace

std::string html_page(const Report& report) {
  std::string page;
  // One pass: what was put in is never searched for places to fill.
  for (std::string_view rest = page_html();;) {
    const size_t open = rest.find("{{");
    page += rest.substr(0, open);
    if (open == std::string_view::npos) return page;
    const size_t close = rest.find("}}", open);
    const std::string_view field = rest.substr(open + 2, close - open - 2);
    if (field == "title") {
      page += escaped(file_name(report.output) + " · microtome");
    } else if (field == "style") {
      page += page_css();
    } else if (field == "report") {
      page += to_script_json(report);
    } else if (field == "chart") {
      page += chart_js();
    } else if (field == "script") {
      page += page_js();
    } else {
      throw_error("page template: unknown field '{}'", field);
    }
    rest.remove_prefix(close + 2);
  }
}

}  // namespace mt
