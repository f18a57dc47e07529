#pragma once
#include <cstdint>
#include <string>

namespace mt {

// Where a long task tells how far it is. The library never prints: the CLI installs a sink that
// draws a line with the time left; the default says nothing.
class ProgressSink {
 public:
  virtual ~ProgressSink() = default;
  virtual void update(const std::string& label, uint64_t done, uint64_t total) = 0;
  virtual void finish(const std::string& label) = 0;
};
void set_progress_sink(ProgressSink* sink);

// One task of `total` equal units, from construction to destruction. Safe to advance from any
// thread.
class Progress {
 public:
  Progress(std::string label, uint64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void advance(uint64_t units = 1);

 private:
  std::string label_;
  uint64_t total_;
  uint64_t done_ = 0;
};

}  // namespace mt
