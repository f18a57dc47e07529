#pragma once
#include <cstdint>
#include <string>

#include "bench/model_speed.h"

namespace mt {

// Another program's command for the same work: {threads}, {prompt}, {decode} and {depth} stand for
// the task's numbers ({prompt} is 0 in a decode task and the other way round).
std::string fill_command(const std::string& command, const SpeedTask& task, int threads);

// Throws Error where the command names other things in braces.
void check_command(const std::string& command);

// Tokens a second from what a program printed: the member "avg_ts" of the last object of a JSON
// array that has one (as llama-bench prints with -o json); 0 where there is none. Throws Error
// where it is no number above zero.
double tokens_a_second(const std::string& output);

struct OtherRun {
  double tokens_a_second = 0;
  bool whole_process = false;  // the program printed no rate: tokens over its whole run
};
// Runs the command in the shell. Throws Error where it fails.
OtherRun run_other(const std::string& command, const SpeedTask& task, int threads);

}  // namespace mt
