#include "base/machine.h"

#include <sys/resource.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

namespace mt {
namespace {

// The number behind a word at the start of a line: "MemAvailable:  123 kB".
std::optional<int64_t> number_in(const std::filesystem::path& file, const std::string& word) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string first;
    int64_t number = 0;
    if (words >> first && first == word && words >> number) return number;
  }
  return std::nullopt;
}

// A file that is one number; "max" is none.
std::optional<int64_t> number_of(const std::filesystem::path& file) {
  std::ifstream in(file);
  int64_t number = 0;
  if (in >> number) return number;
  return std::nullopt;
}

// What this process's group and those around it leave. In a container the tree may begin at the
// group itself, under another name than /proc says.
int64_t cgroup_room() {
  int64_t room = INT64_MAX;
  auto look = [&](const std::filesystem::path& folder, const char* limit, const char* used) {
    const auto most = number_of(folder / limit), now = number_of(folder / used);
    if (!most || !now) return;
    const auto files = number_in(folder / "memory.stat", "inactive_file").value_or(0) +
                       number_in(folder / "memory.stat", "active_file").value_or(0);
    room = std::min(room, std::max<int64_t>(0, *most - *now + files));
  };
  std::ifstream in("/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool old = controllers.find("memory") != std::string::npos;
    if (!old && !controllers.empty()) continue;
    const std::filesystem::path root = old ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup";
    for (std::filesystem::path at = line.substr(second + 1);; at = at.parent_path()) {
      const auto folder = root / at.relative_path();
      look(folder, old ? "memory.limit_in_bytes" : "memory.max",
           old ? "memory.usage_in_bytes" : "memory.current");
      if (!at.has_relative_path()) break;
    }
  }
  return room;
}

}  // namespace

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

int64_t free_memory_bytes() {
  const auto available = number_in("/proc/meminfo", "MemAvailable:");
  return std::min(available ? *available * 1024 : INT64_MAX, cgroup_room());
}

int64_t free_address_bytes() {
  int64_t room = INT64_MAX;
  auto look = [&](auto resource, const char* used) {
    rlimit limit{};
    if (getrlimit(resource, &limit) != 0 || limit.rlim_cur >= rlim_t{INT64_MAX}) return;
    const auto now = number_in("/proc/self/status", used);
    if (now) room = std::min(room, std::max<int64_t>(0, int64_t(limit.rlim_cur) - *now * 1024));
  };
  look(RLIMIT_AS, "VmSize:");
  look(RLIMIT_DATA, "VmData:");
  return room;
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
