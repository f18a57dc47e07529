#include "base/machine.h"

#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <chrono>
#include <fstream>
#include <sstream>

namespace mt {

std::string cpu_name() {
  std::ifstream in("/proc/cpuinfo");
  std::string line, model = "unknown processor", flags;
  while (std::getline(in, line)) {
    const auto colon = line.find(": ");
    if (colon == std::string::npos) continue;
    if (line.starts_with("model name") && model == "unknown processor")
      model = line.substr(colon + 2);
    if (line.starts_with("flags") && flags.empty()) flags = line.substr(colon + 2);
  }
  std::string sets;
  std::istringstream words(flags);
  for (std::string word; words >> word;)
    if (word == "avx2" || word == "avx512f" || word == "avx512_vnni" || word == "avx512_bf16" ||
        word == "amx_int8" || word == "amx_bf16")
      sets += (sets.empty() ? "" : " ") + word;
  return sets.empty() ? model : model + " (" + sets + ")";
}

int64_t machine_bytes() {
  const int64_t pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
  return pages > 0 && size > 0 ? pages * size : 0;
}

void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 256 << 20);
  mallopt(M_TRIM_THRESHOLD, 512 << 20);
#endif
}

int64_t anonymous_bytes() {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("RssAnon:")) return std::stoll(line.substr(8)) * 1024;
  return 0;
}

MemoryWatch::MemoryWatch()
    : thread_([this] {
        while (!stop_) {
          look();
          std::this_thread::sleep_for(std::chrono::milliseconds(100));
        }
      }) {}

MemoryWatch::~MemoryWatch() {
  stop_ = true;
  thread_.join();
}

void MemoryWatch::look() {
  peak_ = std::max(peak_.load(), anonymous_bytes());
}

int64_t MemoryWatch::peak_bytes() {
  look();
  return peak_;
}

}  // namespace mt
