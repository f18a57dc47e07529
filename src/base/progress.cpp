#include "base/progress.h"

#include <mutex>
#include <utility>

namespace mt {
namespace {
std::mutex sink_mutex;
ProgressSink* current_sink = nullptr;
}  // namespace

void set_progress_sink(ProgressSink* sink) {
  std::lock_guard lock(sink_mutex);
  current_sink = sink;
}

Progress::Progress(std::string label, uint64_t total) : label_(std::move(label)), total_(total) {
  std::lock_guard lock(sink_mutex);
  if (current_sink) current_sink->update(label_, 0, total_);
}
Progress::~Progress() {
  std::lock_guard lock(sink_mutex);
  if (current_sink) current_sink->finish(label_);
}
void Progress::advance(uint64_t units) {
  std::lock_guard lock(sink_mutex);
  done_ += units;
  if (current_sink) current_sink->update(label_, done_, total_);
}

}  // namespace mt
