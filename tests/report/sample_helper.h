#pragma once
#include "flow/report.h"

namespace mt::report_test {

// A report as a run on a small model gives it; losses from a seeded generator.
Report sample_report(int n_layers = 30);

// The same with markup, control characters and broken UTF-8 in every string.
Report hostile_report();

}  // namespace mt::report_test
