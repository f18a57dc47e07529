#pragma once
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "cli/terminal.h"
#include "run/forward.h"

// The pattern of a command: one file cmd_NAME.cpp that defines `const Command NAME_command`,
// declared below and listed in main.cpp. Its `add` declares options on the subcommand and returns
// the function that does the work; option values live in that function's captures.
namespace mt::cli {

enum Exit : int {
  exit_done = 0,
  exit_check_failed = 1,  // the work is done, a bound that was asked for does not hold
  exit_bad_input = 2,     // file, text or usage
  exit_internal = 3,
  exit_interrupted = 130,
};

// Keeps key order, so that JSON reads as the tables do.
using Json = nlohmann::ordered_json;

// What every command is given: the common options, the two streams, and what computes.
class Context {
 public:
  bool json = false;
  bool quiet = false;               // no progress, no notes
  bool progress = false;            // as plain lines where there is no terminal
  bool keeps_measurements = false;  // what an interrupted run measured is there for the next
  int threads = 0;                  // 0: all processors
  Terminal out{1};
  Terminal err{2};

  // The thread pool and kernels, made at first use.
  const Runtime& runtime();

  // Text to standard output. Throws Error where it cannot be written (disk full); where the
  // reader has gone (a closed pipe) the text is dropped and `reader_gone` turns true.
  void print(std::string_view text);
  void flush();
  bool reader_gone() const { return reader_gone_; }
  // One JSON document and a newline; bytes that are not UTF-8 become U+FFFD.
  void print_json(const Json& document);
  // A remark for people, on standard error, silent with --quiet.
  void note(std::string_view text);
  // The command to go on with, after all output: for people at a terminal only.
  void suggest(std::string_view command);

 private:
  void keep(std::string_view text);
  bool reader_gone_ = false;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Runtime> runtime_;
};

// Prose for standard output: folded at the terminal's width, two columns in, a line of its own.
std::string folded(const Context& context, std::string_view text);

// A word of a command as a shell takes it: quoted where it must be.
std::string shell_word(std::string_view word);

// A note where a context is longer than what the model was trained on (0: it does not say).
void warn_beyond_training(Context& context, int64_t trained, int64_t n_ctx);

// The model that most commands open.
template <class T>
void declare_model(CLI::App& app, T& model,
                   const char* what = "A GGUF or safetensors file, or a Hugging Face folder") {
  app.add_option("-m,--model,MODEL", model, what)->required();
}

// A check that a seed is written as a whole number from 0 to 2^64 - 1; `also` is let through.
CLI::Validator seed_number(std::string also = "");

// A range check that does not print its bounds in the help.
template <class T>
CLI::Validator within(T low, T high) {
  auto range = CLI::Range(low, high).description("");
  if constexpr (std::is_floating_point_v<T>)  // CLI11's range lets NaN through
    return CLI::Validator(
        [low, high, range](std::string& text) {
          T value;
          if (!CLI::detail::lexical_cast(text, value) || !(value >= low && value <= high))
            return fmt::format("Value {} not in range {} to {}", text, low, high);
          return std::string();
        },
        "");
  else
    return range;
}

// To standard error; never fails.
void write_error(std::string_view text);

using Run = std::function<int(Context&)>;

struct Command {
  const char* name;
  const char* summary;
  const char* examples;  // shown at the end of its help, one command a line
  Run (*add)(CLI::App& app);
};

extern const Command inspect_command;
extern const Command generate_command;
extern const Command eval_command;
extern const Command profile_command;
extern const Command plan_command;
extern const Command cut_command;
extern const Command compress_command;
extern const Command export_command;
extern const Command bench_command;

// True after the first SIGINT. A command that polls it while it works (and then ends in order)
// says so with a PollsInterrupt; elsewhere SIGINT ends the program, at the next progress update
// where a task is under way, so that temporary files are removed.
bool interrupted();
void clear_interrupt();
struct PollsInterrupt {
  PollsInterrupt();
  ~PollsInterrupt();
};
// Thrown to unwind after SIGINT; main turns it into exit code 130.
struct Interrupted {};

}  // namespace mt::cli
