#pragma once
#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mt::cli {

// Lets streamed text through up to the first stop string, and holds back what may yet become one,
// so that no part of it is shown however it is split.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {
    std::erase(stops_, "");
  }
  bool stopped() const { return stopped_; }

  std::string push(std::string_view text) {
    if (stopped_) return "";
    held_ += text;
    size_t found = held_.npos;
    for (const auto& stop : stops_) found = std::min(found, held_.find(stop));
    if (found != held_.npos) {
      stopped_ = true;
      return std::exchange(held_, "").substr(0, found);
    }
    size_t keep = 0;
    for (const auto& stop : stops_)
      for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n)
        if (held_.ends_with(std::string_view(stop).substr(0, n))) keep = n;
    std::string out = held_.substr(0, held_.size() - keep);
    held_.erase(0, out.size());
    return out;
  }
  // The end of the text: what was held back is no stop string after all.
  std::string flush() { return stopped_ ? "" : std::exchange(held_, ""); }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace mt::cli
