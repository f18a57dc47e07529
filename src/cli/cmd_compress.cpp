#include <algorithm>
#include <chrono>
#include <exception>

#include "base/error.h"
#include "base/machine.h"
#include "cli/session_options.h"
#include "compress/carry_out.h"
#include "file/model_hash.h"
#include "plan/ask.h"
#include "report/format.h"
#include "report/html.h"
#include "report/report_json.h"
#include "report/terminal.h"

namespace mt::cli {
namespace {

struct Options {
  SessionOptions session;
  GoalOptions goal;
  std::filesystem::path output, page, plan;
  bool force = false, no_page = false;
  int frontier = 12;
  std::optional<int64_t> refine_steps;
  std::optional<Feedback> feedback;
};

// Why a plan does not take more bytes.
std::string step_up(const Plan& plan) {
  int64_t least = INT64_MAX;
  for (const Decision& d : plan.decisions)
    if (d.dearer) least = std::min(least, d.dearer->bytes - d.chosen.bytes);
  if (least == INT64_MAX) return "no format on offer loses less";
  return fmt::format("the smallest step to a format that loses less takes {}", grouped(least));
}

int run(Context& context, const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  const Goal goal = options.goal.resolved(options.session.settings.search_seconds);
  SessionSettings settings = options.session.resolved(&goal);
  check_output(options.output, settings.model, options.force);
  const auto page = !options.page.empty()
                        ? options.page
                        : std::filesystem::path(options.output).replace_extension(".html");
  if (!options.no_page) check_output(page, settings.model, options.force);
  if (!options.plan.empty()) check_output(options.plan, settings.model, options.force);
  check_distinct({{"-o", options.output},
                  {"--html", options.no_page ? "" : page},
                  {"--plan", options.plan},
                  {"--db", db_name(settings)}});
  check_texts(settings,
              {options.output, options.no_page ? std::filesystem::path() : page, options.plan});

  MemoryWatch memory;
  settings.refine_steps = options.refine_steps.value_or(goal.uniform ? 0 : kRefineByWeights);
  settings.feedback =
      options.feedback.value_or(goal.uniform ? Feedback::none : Feedback::independent);
  Session session(context.runtime(), settings);
  warn_beyond_training(context, session.model().context_length, settings.n_ctx);
  const auto [plan, cut, refined, proof, notes] =
      carry_out(session, goal, [&](const std::string& note) { context.note(note); });
  note_windows(context, session);
  check_output(options.output, settings.model, options.force);  // hours may have passed
  session.write(options.output, refined, plan, proof, options.force);

  Report report = session.report(plan, refined, proof);
  report.output = options.output.string();
  report.output_sha256 = mt::model_sha256(options.output);
  session.measure_largest(report, cut, 12);  // scales refined together do not count alone
  if (options.frontier > 0) report.frontier = session.frontier(options.frontier);
  report.notes = notes;
  if (!plan.note.empty()) report.notes.push_back(plan.note);
  if (keeps_all(plan))
    report.notes.push_back("the source is within the goal already: every tensor is kept as it is");
  else if (const auto budget = session.budget(goal);
           budget && plan.predicted_bytes < *budget - *budget / 50)
    report.notes.push_back(fmt::format("{} bytes of those asked for are left: {}",
                                       grouped(*budget - plan.predicted_bytes), step_up(plan)));
  // On SmolLM2 at 72.8 MB a fifth less KL (docs/results.md).
  constexpr double kMuchLost = 0.05;
  if (!goal.uniform && settings.types == default_types() && proof.kl_mean.value > kMuchLost)
    report.notes.push_back(
        "--types all offers further formats, most of 1 to 3.5 bits: at this loss the same size may "
        "keep more with them; measuring them takes longer");
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report.peak_memory_bytes = memory.peak_bytes();
  if (context.json)
    context.print(to_json(report) + "\n");
  else
    context.print(
        terminal_report(report, {.width = context.out.is_terminal ? context.out.width() : 100,
                                 .colour = context.out.colour,
                                 .max_places = 12}));
  // After the report: what was measured is to be seen even where these find no room; and where one
  // cannot be written the others are.
  std::exception_ptr failure;
  const auto attempt = [&](auto&& write) {
    try {
      write();
    } catch (const Error&) {
      if (!failure) failure = std::current_exception();
    }
  };
  attempt([&] { context.flush(); });
  if (!options.plan.empty())
    attempt([&] { write_text(options.plan, to_json(plan), options.force); });
  if (!options.no_page)
    attempt([&] {
      check_output(page, settings.model, options.force);
      write_text(page, html_page(report), options.force);
      if (!context.json) context.print("page: " + printable(page.string()) + "\n");
    });
  if (failure) std::rethrow_exception(failure);
  session.finish();
  if (goal.max_kl && proof.kl_mean.value > *goal.max_kl) {
    context.note(fmt::format("the bound does not hold: measured {:.4f}, asked {:.4f}",
                             proof.kl_mean.value, *goal.max_kl));
    return exit_check_failed;
  }
  context.suggest(
      fmt::format("microtome generate {} -p '...'", shell_word(options.output.string())));
  context.suggest(fmt::format("microtome eval {} --against {} --text YOUR_TEXT.txt",
                              shell_word(options.output.string()),
                              shell_word(settings.model.string())));
  return exit_done;
}

Run add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->session.declare(app);
  declare_feedback(app, options->feedback, "independent, none with --type");
  declare_biases(app, options->session.settings.biases);
  options->goal.declare(app);
  app.add_option("-o,--output", options->output, "The GGUF file to write")
      ->required()
      ->type_name("FILE");
  app.add_flag("--force", options->force, "Overwrite what exists");
  auto* page = app.add_option("--html", options->page,
                              "The HTML page (default: the output's name with .html)")
                   ->type_name("FILE");
  app.add_flag("--no-html", options->no_page, "Write no HTML page")->excludes(page);
  app.add_option("--plan", options->plan, "Write the plan as JSON too")->type_name("FILE");
  declare_search(app, options->session.settings.search_seconds);
  declare_refine(app, options->refine_steps, options->session.settings.refine_by,
                 "80, fewer for models of more than 500 million weights, none with --type");
  app.add_option("--frontier", options->frontier, "Points of the size/KL curve (default: 12)")
      ->check(within(0, 200))
      ->type_name("N");
  return [options](Context& context) { return run(context, *options); };
}

}  // namespace

const Command compress_command = {
    .name = "compress",
    .summary = "Cut a model to a size, a loss or a format, and prove what it cost",
    .examples =
        "microtome compress model.gguf --size 75MB -o small.gguf\n"
        "microtome compress hf-folder/ --bpw 4.5 --text wiki.txt --text code.txt:0.3 -o "
        "small.gguf\n"
        "microtome compress model.gguf --max-kl 0.02 -o small.gguf --json > report.json",
    .add = add};

}  // namespace mt::cli
