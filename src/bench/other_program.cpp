#include "bench/other_program.h"

#include <sys/wait.h>

#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <regex>
#include <utility>

#include "base/error.h"

namespace mt {
namespace {
constexpr size_t kMostOutput = size_t{64} << 20;

std::string run_shell(const std::string& command) {
  std::FILE* pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) throw_error("--against: the shell cannot be started");
  std::string output;
  std::array<char, 4096> part;
  for (size_t n; (n = std::fread(part.data(), 1, part.size(), pipe)) > 0;)
    if (output.size() < kMostOutput) output.append(part.data(), n);
  const int status = ::pclose(pipe);
  if (status != 0)
    throw_error("--against: '{}' ended with {}", command,
                WIFEXITED(status) ? fmt::format("exit code {}", WEXITSTATUS(status))
                                  : fmt::format("signal {}", WTERMSIG(status)));
  return output;
}

}  // namespace

std::string fill_command(const std::string& command, const SpeedTask& task, int threads) {
  const bool decode = task.phase == Phase::decode;
  const std::array<std::pair<std::string, int64_t>, 4> names = {{
      {"{threads}", threads},
      {"{prompt}", decode ? 0 : task.tokens},
      {"{decode}", decode ? task.tokens : 0},
      {"{depth}", task.depth},
  }};
  std::string filled = command;
  for (const auto& [name, value] : names)
    for (size_t at; (at = filled.find(name)) != filled.npos;)
      filled.replace(at, name.size(), std::to_string(value));
  return filled;
}

void check_command(const std::string& command) {
  // A single word in braces; the shell's own ${name}, lists and blocks are left alone.
  static const std::regex word(R"((^|[^$])(\{[a-z_]+\}))");
  const std::string filled = fill_command(command, {}, 1);
  std::smatch unknown;
  if (!std::regex_search(filled, unknown, word)) return;
  throw_error(
      "--against: '{}' is unknown; {{threads}}, {{prompt}}, {{decode}} and {{depth}} are filled in",
      unknown[2].str());
}

double tokens_a_second(const std::string& output) {
  const size_t open = output.find_first_of("[{"), close = output.find_last_of("]}");
  if (open == output.npos || close == output.npos || close < open) return 0;
  auto list =
      nlohmann::json::parse(output.substr(open, close + 1 - open), nullptr, /*exceptions=*/false);
  if (list.is_object()) list = nlohmann::json::array({list});
  if (!list.is_array()) return 0;
  double rate = 0;
  for (const auto& one : list) {
    if (!one.is_object() || !one.contains("avg_ts")) continue;
    rate = one["avg_ts"].is_number() ? one["avg_ts"].get<double>() : 0;
    if (!(rate >= 1e-6 && rate <= 1e9))
      throw_error("--against: avg_ts: expected tokens a second, found {}", one["avg_ts"].dump());
  }
  return rate;
}

OtherRun run_other(const std::string& command, const SpeedTask& task, int threads) {
  const auto start = std::chrono::steady_clock::now();
  const std::string output = run_shell(fill_command(command, task, threads));
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const double rate = tokens_a_second(output);
  if (rate > 0) return {.tokens_a_second = rate, .whole_process = false};
  return {.tokens_a_second = static_cast<double>(task.tokens) / seconds, .whole_process = true};
}

}  // namespace mt
