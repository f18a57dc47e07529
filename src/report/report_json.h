#pragma once
#include <string>

#include "flow/report.h"

namespace mt {

// JSON text, indented; every number reads back exactly, one that is not finite is null and reads
// back as NaN. Bytes of names that are not UTF-8 become U+FFFD.
std::string to_json(const Report& report);

// The same on one line and safe between <script> tags: no '<', '>' or '&', ASCII only.
std::string to_script_json(const Report& report);

// Throws Error naming path and field: not JSON, another version, missing, of another type.
Report report_from_json(const std::string& text, const std::string& path);

}  // namespace mt
