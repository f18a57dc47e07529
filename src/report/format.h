#pragma once
#include <string>

#include "flow/report.h"

namespace mt {

// Numbers as people read them; "–" for one that is not finite.
std::string readable_bytes(int64_t bytes);  // 98.36 MB (10^6)
std::string readable_number(double value);  // four significant digits: 0.01234, 12.34, 1.2e-05
std::string readable_share(double share);   // 97.4 %
std::string readable_estimate(const Estimate& e);  // 0.0123 [0.0119, 0.0127]
std::string readable_seconds(double seconds);      // 48 s, 3 min 20 s, 1 h 4 min

// What the loss of a place is ranked by: measured where it was, else predicted.
double ranking_loss(const PlaceReport& place);

}  // namespace mt
