#pragma once
#include <chrono>
#include <mutex>
#include <string>
#include <vector>

#include "base/progress.h"
#include "cli/terminal.h"

namespace mt::cli {

// Draws the task that moved last as one line on the terminal, once it has lasted two seconds, at
// most ten times a second; removes the line when the task ends. Or writes plain lines, one every
// `pause`, that stay. Throws Interrupted from an update that follows a SIGINT.
class ProgressDraw : public ProgressSink {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Style { silent, drawn, lines };
  ProgressDraw(const Terminal& terminal, Style style,
               Clock::duration pause = std::chrono::seconds(10));
  ~ProgressDraw() override;
  void update(const std::string& label, uint64_t done, uint64_t total) override;
  void finish(const std::string& label) override;
  // Removes the line so that other text can be written; the next update draws it again.
  void clear();

 private:
  struct Task {
    std::string label;
    Clock::time_point start;
  };
  const Terminal& terminal_;
  Style style_;
  Clock::duration pause_;
  std::mutex mutex_;
  std::vector<Task> tasks_;
  Clock::time_point drawn_ = Clock::now();
  bool visible_ = false;
  void erase_line();
};

}  // namespace mt::cli
