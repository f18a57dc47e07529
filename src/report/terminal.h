#pragma once
#include <string>
#include <string_view>

#include "flow/report.h"

namespace mt {

struct TerminalStyle {
  int width = 80;       // columns; at least 40 are used
  bool colour = false;  // ANSI
  int max_places = 20;  // rows of the table of places, largest losses first; negative: all
};

// The report as text, no line wider than the style says. Control characters of names are shown
// as '?', so that a model file cannot write to the terminal.
std::string terminal_report(const Report& report, const TerminalStyle& style = {});

// Columns that the text takes: combining marks none, East Asian wide characters and emoji two.
int display_width(std::string_view utf8);

// At most `width` columns, the last of them "…" where something is left out; never cuts a
// character in two, invalid bytes and control characters become '?'.
std::string fitted(std::string_view utf8, int width);

}  // namespace mt
