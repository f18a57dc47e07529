#pragma once
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "cli/terminal.h"

namespace mt::cli {

// One line of at most `width` - 1 columns (the last one would make some terminals wrap):
// "measuring  42 %  1:23 left". What does not fit is left out: first the words, then the label.
inline std::string progress_line(std::string_view label, uint64_t done, uint64_t total,
                                 double elapsed, int width) {
  int64_t room = width - 1;
  if (total == 0) return fit(label, room);
  double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  std::string percent = fmt::format("{:3.0f} %", std::floor(share * 100));
  std::string left;
  if (done > 0 && share < 1) left = human_time(elapsed * (1 - share) / share);
  for (std::string tail : {left.empty() ? percent : percent + "  " + left + " left",
                           left.empty() ? percent : percent + " " + left, percent}) {
    int64_t for_label = room - columns(tail) - 2;
    if (for_label >= std::min<int64_t>(columns(label), 8))
      return fit(label, for_label) + "  " + tail;
  }
  return fit(percent, room);
}

}  // namespace mt::cli
