#include "bench/machine_speed.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "kernels/peak.h"

namespace mt {
namespace {
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr int64_t kLine = 64;
constexpr int64_t kStreams = 8;

// One word of every line: the memory brings the whole line.
uint64_t read_lines(const std::byte* data, int64_t bytes) {
  const int64_t words = kLine / static_cast<int64_t>(sizeof(uint64_t));
  const int64_t each = bytes / kLine / kStreams * words;
  const auto* p = reinterpret_cast<const uint64_t*>(data);
  uint64_t sum[kStreams] = {};
  for (int64_t i = 0; i < each; i += words)
    for (int64_t s = 0; s < kStreams; ++s) sum[s] += p[s * each + i];
  uint64_t total = 0;
  for (uint64_t s : sum) total += s;
  return total;
}

double unit_speed(ThreadPool& pool, const Peak& peak, int repeats) {
  // As many rounds as take about 20 ms.
  int64_t rounds = 1000;
  for (;; rounds *= 4) {
    const auto start = Clock::now();
    peak.run(rounds);
    const double took = seconds_since(start);
    if (took > 0.002 || rounds > (int64_t{1} << 40)) {
      rounds = std::max<int64_t>(1, static_cast<int64_t>(double(rounds) * 0.02 / took));
      break;
    }
  }
  double best = 0;
  for (int i = 0; i < repeats; ++i) {
    std::atomic<int64_t> products{0};
    const auto start = Clock::now();
    pool.parallel_for(pool.size(), [&](int64_t, int) { products += peak.run(rounds); });
    best = std::max(best, 2.0 * static_cast<double>(products) / seconds_since(start));
  }
  return best;
}

}  // namespace

double MachineSpeed::fastest(std::string_view kind) const {
  double best = 0;
  for (const UnitSpeed& unit : units)
    if (unit.name.starts_with(kind)) best = std::max(best, unit.operations);
  return best;
}

MemoryToRead::MemoryToRead(int64_t bytes) : memory_(static_cast<size_t>(bytes)) {
  std::fill_n(memory_.data(), memory_.size(), std::byte{1});
}

double MemoryToRead::speed(ThreadPool& pool, int repeats) const {
  const int64_t n = pool.size(), each = bytes() / n / kLine * kLine;
  std::atomic<uint64_t> sink{0};
  double best = 0;
  for (int i = 0; i < repeats; ++i) {
    const auto start = Clock::now();
    pool.parallel_for(
        n, [&](int64_t part, int) { sink += read_lines(memory_.data() + part * each, each); });
    best = std::max(best, static_cast<double>(n * each) / seconds_since(start));
  }
  return best;
}

MachineSpeed measure_machine(ThreadPool& pool, const MemoryToRead& memory, int repeats) {
  MachineSpeed speed;
  speed.threads = pool.size();
  speed.read_bytes = memory.speed(pool, repeats);
  for (const Peak& peak : available_peaks())
    speed.units.push_back({std::string(peak.name), unit_speed(pool, peak, repeats)});
  return speed;
}

}  // namespace mt
