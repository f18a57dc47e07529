#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/machine.h"
#include "base/version.h"
#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/progress_draw.h"
#include "cli/terminal.h"

namespace mt::cli {
namespace {

const Command* const commands[] = {
    &inspect_command, &generate_command, &eval_command,   &profile_command, &plan_command,
    &cut_command,     &compress_command, &export_command, &bench_command,
};

void add_common_options(CLI::App& app, Context& context) {
  app.add_flag("--json", context.json, "Print one JSON document instead of tables");
  if (app.get_option_no_throw("--threads") == nullptr)  // `bench` takes a list of them
    app.add_option("-t,--threads", context.threads,
                   "Threads that compute (default: all processors)")
        ->check(within(1, 1024))
        ->type_name("N");
  app.add_flag("-q,--quiet", context.quiet, "No progress and no remarks on standard error");
  app.add_flag("--progress", context.progress,
               "Progress as a line every 10 seconds where standard error is no terminal");
}

std::string all_examples() {
  std::string text = "Examples:\n";
  for (const Command* c : commands) {
    std::string_view examples = c->examples;
    text += fmt::format("  {}\n", examples.substr(0, examples.find('\n')));
  }
  return text + "\n`microtome COMMAND --help` says more of each.";
}

std::string indented_examples(std::string_view examples) {
  std::string text = "Examples:\n";
  while (!examples.empty()) {
    size_t end = examples.find('\n');
    text += fmt::format("  {}\n", examples.substr(0, end));
    examples.remove_prefix(end == examples.npos ? examples.size() : end + 1);
  }
  return text;
}

constexpr int64_t kHelpColumn = 28, kHelpWidth = 100;  // where there is no terminal to ask

// Descriptions of options broken into lines of at most `width` columns; examples stay whole.
std::string help_of_width(std::string_view help, int64_t width) {
  std::string text;
  bool examples = false;
  for (size_t end; !help.empty(); help.remove_prefix(std::min(help.size(), end + 1))) {
    end = std::min(help.find('\n'), help.size());
    const std::string_view line = help.substr(0, end);
    examples = examples || line == "Examples:";
    const size_t column = line.starts_with(' ') ? size_t{kHelpColumn} : 0;
    // An option's name may be longer than its column.
    const bool folds = line.size() > column && (column == 0 || line[column - 1] == ' ');
    if (examples || columns(line) <= width || !folds)
      text += fmt::format("{}\n", line);
    else
      text += wrapped(line.substr(0, column), line.substr(column), width, int64_t(column));
  }
  return text;
}

// How many letters to change, add or leave out to make `a` into `b` (Levenshtein 1966).
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j < row.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j)
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1,
                                                 diagonal + (a[i - 1] != b[j - 1] ? 1 : 0)}));
  }
  return row.back();
}

// Of words that a command's parser refused: the first that is no option of it, "" where all are.
// A parser without this reads -ngl as -n with the value "gl".
std::string unknown_option(const CLI::App& command, int argc, char** argv) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options())
    for (const auto* list : {&option->get_lnames(), &option->get_snames()})
      for (const std::string& name : *list)
        names.push_back(std::string(name.size() > 1 ? "--" : "-") + name);
  for (int i = 1; i < argc; ++i) {
    std::string_view word = argv[i];
    word = word.substr(0, word.find('='));
    if (word == "--") break;
    const bool is_word =
        word.size() > 2 && word[0] == '-' &&
        (word[1] == '-' || (word[1] >= 'a' && word[1] <= 'z' && word[2] >= 'a' && word[2] <= 'z'));
    if (!is_word || std::find(names.begin(), names.end(), word) != names.end()) continue;
    const auto far = [&](const std::string& name) {
      return name.starts_with(word) ? 0 : distance(word, name);
    };
    const auto nearest = std::min_element(
        names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
          return std::pair(far(a), a.size()) < std::pair(far(b), b.size());
        });
    const bool near = nearest != names.end() && word[1] == '-' && far(*nearest) <= 2;
    return fmt::format("unknown option '{}'{}", word.substr(0, 60),
                       near ? fmt::format("; did you mean '{}'?", *nearest) : "");
  }
  return "";
}

// Of a line on which the parser found no command.
std::string no_command(int argc, char** argv) {
  std::string list;
  for (const Command* c : commands) list += (list.empty() ? "" : ", ") + std::string(c->name);
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--threads" || word == "-t") ++i;
    if (word.starts_with('-')) continue;
    const Command* nearest = *std::min_element(
        std::begin(commands), std::end(commands),
        [&](auto* a, auto* b) { return distance(word, a->name) < distance(word, b->name); });
    const bool near = distance(word, nearest->name) <= 2;
    return fmt::format("unknown command '{}'; {}ommands are {}", word.substr(0, 60),
                       near ? fmt::format("did you mean '{}'? C", nearest->name) : "c", list);
  }
  return fmt::format("expected a command: {}", list);
}

// One line, whatever the message holds.
std::string one_line(std::string_view message) {
  std::string text;
  for (char c : message) text += c == '\n' ? ' ' : c;
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return printable(text);
}

int fail(Context& context, int code, std::string_view message) {
  std::string line = one_line(message);
  write_error(fmt::format("microtome: {}\n", line));
  if (context.json) {
    try {
      context.print_json(Json{{"error", line}, {"exit_code", code}});
      context.flush();
    } catch (const Error&) {
      // Nothing is left to tell it to.
    }
  }
  return code;
}

int run_program(int argc, char** argv, Context& context) {
  // "help" and "help COMMAND", as other programs take them.
  std::vector<char*> words(argv, argv + argc);
  std::string asked_help = "--help";
  if (argc > 1 && argc < 4 && std::string_view(argv[1]) == "help") {
    words.erase(words.begin() + 1);
    words.push_back(asked_help.data());
  }
  // llama.cpp's names of two letters, which the parser would take for -c with a value.
  std::string cache_keys = "--cache-type-k", cache_values = "--cache-type-v";
  for (char*& word : words) {
    if (word == std::string_view("-ctk")) word = cache_keys.data();
    if (word == std::string_view("-ctv")) word = cache_values.data();
  }
  CLI::App app("microtome: opens a pretrained transformer, cuts it to a size, says what it cost",
               "microtome");
  app.set_version_flag("--version", fmt::format("microtome {}", version()));
  app.require_subcommand(1);
  app.footer(all_examples());
  app.get_formatter()->column_width(kHelpColumn);
  add_common_options(app, context);
  std::vector<std::pair<CLI::App*, Run>> runs;
  for (const Command* c : commands) {
    CLI::App* sub = app.add_subcommand(c->name, c->summary);
    sub->footer(indented_examples(c->examples));
    Run run = c->add(*sub);
    add_common_options(*sub, context);
    runs.emplace_back(sub, std::move(run));
  }
  // The parser stops at the first mistake, perhaps before it has seen --json.
  for (int i = 1; i < argc; ++i)
    if (std::string_view(argv[i]) == "--json") context.json = true;
  try {
    app.parse(static_cast<int>(words.size()), words.data());
  } catch (const CLI::CallForHelp& help) {
    const CLI::App* asked = &app;
    for (const auto& [sub, run] : runs)
      if (sub->parsed()) asked = sub;
    const Terminal out(STDOUT_FILENO);
    context.print(help_of_width(asked == &app ? app.help() : asked->help("microtome"),
                                out.is_terminal ? out.width() : kHelpWidth));
    context.flush();
    return exit_done;
  } catch (const CLI::CallForVersion& asked) {
    context.print(std::string(asked.what()) + "\n");
    context.flush();
    return exit_done;
  } catch (const CLI::ParseError& e) {
    std::string where = "microtome", what;
    for (const auto& [sub, run] : runs)
      if (sub->parsed()) {
        where += " " + sub->get_name();
        what = unknown_option(*sub, static_cast<int>(words.size()), words.data());
      }
    if (where == "microtome" && dynamic_cast<const CLI::RequiredError*>(&e))
      what = no_command(argc, argv);
    if (what.empty()) what = e.what();
    return fail(context, exit_bad_input, fmt::format("{} (see `{} --help`)", what, where));
  }
  ProgressDraw progress(context.err, context.quiet             ? ProgressDraw::Style::silent
                                     : context.err.is_terminal ? ProgressDraw::Style::drawn
                                     : context.progress        ? ProgressDraw::Style::lines
                                                               : ProgressDraw::Style::silent);
  set_progress_sink(&progress);
  struct Unset {
    ~Unset() { set_progress_sink(nullptr); }
  } unset;
  for (auto& [sub, run] : runs)
    if (sub->parsed()) {
      // An empty name is an unset variable of the shell, not a file that was not asked for.
      for (const CLI::Option* option : sub->get_options())
        if (option->get_type_name() == "FILE" &&
            std::any_of(option->results().begin(), option->results().end(),
                        [](const std::string& name) { return name.empty(); }))
          throw_error("{}: the name is empty", option->get_name());
      context.keeps_measurements = sub->get_option_no_throw("--db") != nullptr;
      int code = run(context);
      context.flush();
      return code;
    }
  return exit_internal;  // require_subcommand(1) saw to it that one was parsed
}

int run_and_report(int argc, char** argv) {
  Context context;
  try {
    return run_program(argc, argv, context);
  } catch (const Interrupted&) {
    context.note(context.keeps_measurements
                     ? "interrupted; measurements made so far are kept: the same command goes on"
                     : "interrupted");
    return exit_interrupted;
  } catch (const Error& e) {
    return fail(context, exit_bad_input, e.what());
  } catch (const std::filesystem::filesystem_error& e) {
    return fail(context, exit_bad_input,
                fmt::format("{}: {}", e.path1().string(), e.code().message()));
  } catch (const std::system_error& e) {
    return fail(context, exit_bad_input,
                fmt::format("the system refused: {}; try fewer --threads", e.code().message()));
  } catch (const std::bad_alloc&) {
    return fail(
        context, exit_bad_input,
        "not enough memory for this model or setting; try a smaller context (--ctx, --n-ctx, "
        "--depth), or a machine with more");
  } catch (const std::exception& e) {
    return fail(context, exit_internal, fmt::format("internal error: {}", e.what()));
  }
}

}  // namespace
}  // namespace mt::cli

int main(int argc, char** argv) {
  mt::keep_freed_memory();
  mt::cli::install_signal_handlers();
  const int code = mt::cli::run_and_report(argc, argv);
#ifndef __SANITIZE_ADDRESS__  // which looks for leaks at the end
  // OpenBLAS, which Cbc's libraries bring along, waits at the end for threads of its own, for ever
  // where there was too little memory to start them. All that is ours has ended by now.
  std::fflush(nullptr);
  std::_Exit(code);
#endif
  return code;
}
