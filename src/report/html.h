#pragma once
#include <string>

#include "flow/report.h"

namespace mt {

// One page that needs no network: styles, script, Chart.js and the report's JSON are inside, and a
// content security policy forbids loading anything. Numbers carry data-path (a JSON pointer into
// the block "report") and data-value beside their readable text.
std::string html_page(const Report& report);

}  // namespace mt
