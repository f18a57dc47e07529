#include "cli/progress_draw.h"

#include <unistd.h>

#include <algorithm>
#include <string_view>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/progress_line.h"

namespace mt::cli {
namespace {
void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    ssize_t n = ::write(fd, text.data(), text.size());
    if (n <= 0) return;  // a lost progress line is no reason to stop
    text.remove_prefix(static_cast<size_t>(n));
  }
}
}  // namespace

ProgressDraw::ProgressDraw(const Terminal& terminal, Style style, Clock::duration pause)
    : terminal_(terminal), style_(style), pause_(pause) {}

ProgressDraw::~ProgressDraw() {
  clear();
}

void ProgressDraw::update(const std::string& label, uint64_t done, uint64_t total) {
  std::lock_guard lock(mutex_);
  auto now = Clock::now();
  auto task =
      std::find_if(tasks_.begin(), tasks_.end(), [&](const Task& t) { return t.label == label; });
  if (task == tasks_.end()) {
    task = tasks_.insert(tasks_.end(), {label, now});
    set_task_active(true);
  }
  if (interrupted()) throw Interrupted();
  double elapsed = std::chrono::duration<double>(now - task->start).count();
  if (style_ == Style::lines && now - drawn_ >= pause_) {
    write_all(terminal_.fd, progress_line(label, done, total, elapsed, 100) + "\n");
    drawn_ = now;
  }
  if (style_ != Style::drawn || elapsed < 2) return;
  if (visible_ && now - drawn_ < std::chrono::milliseconds(100)) return;
  std::string line = progress_line(label, done, total, elapsed, terminal_.width());
  erase_line();
  write_all(terminal_.fd, line);
  visible_ = true;
  drawn_ = now;
}

void ProgressDraw::finish(const std::string& label) {
  std::lock_guard lock(mutex_);
  std::erase_if(tasks_, [&](const Task& t) { return t.label == label; });
  if (tasks_.empty()) set_task_active(false);
  erase_line();
}

void ProgressDraw::clear() {
  std::lock_guard lock(mutex_);
  erase_line();
}

void ProgressDraw::erase_line() {
  if (!visible_) return;
  // Spaces where the terminal may not know the escape for "clear to the end of the line".
  if (terminal_.colour)
    write_all(terminal_.fd, "\r\x1b[K");
  else
    write_all(terminal_.fd,
              "\r" + std::string(static_cast<size_t>(terminal_.width() - 1), ' ') + "\r");
  visible_ = false;
}

}  // namespace mt::cli
