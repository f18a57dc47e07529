#include "base/error.h"
#include "cli/session_options.h"
#include "compress/carry_out.h"
#include "plan/tensor_types.h"
#include "report/format.h"

namespace mt::cli {
namespace {

struct Options {
  SessionOptions session;
  GoalOptions goal;
  std::filesystem::path output, tensor_types;
  bool force = false;
  int frontier = 0;
};

void show_frontier(Context& context, Session& session, int points) {
  const auto curve = session.frontier(points);
  if (context.json) {
    Json list = Json::array();
    for (const auto& p : curve)
      list.push_back({{"bytes", p.bytes},
                      {"bits_per_weight", p.bits_per_weight},
                      {"predicted_kl", p.predicted_kl}});
    context.print_json({{"frontier", list}});
    return;
  }
  Table table({{"size", Table::Align::right},
               {"bytes", Table::Align::right},
               {"bits/weight", Table::Align::right},
               {"predicted KL", Table::Align::right}});
  for (const auto& p : curve)
    table.row({readable_bytes(p.bytes), grouped(p.bytes), fmt::format("{:.3f}", p.bits_per_weight),
               readable_number(p.predicted_kl)});
  context.print(table.text(context.out.is_terminal ? context.out.width() : 0, context.out.colour));
  if (std::ssize(curve) < points)
    context.print("\n" +
                  folded(context, fmt::format("{} sizes, not {}: at the others no plan loses "
                                              "less than that of a smaller file",
                                              curve.size(), points)));
  context.print("\n" + folded(context,
                              "Sums of what places lose one by one, to compare sizes with each "
                              "other; a plan for one size measures what it rests on, and the "
                              "whole: what it states may be half as much or twice."));
}

int run(Context& context, const Options& options) {
  std::optional<Goal> goal;
  if (options.frontier == 0)
    goal = options.goal.resolved(options.session.settings.search_seconds);
  else if (options.session.settings.search_seconds > 0 || !options.output.empty() ||
           !options.tensor_types.empty() || options.goal.given())
    throw_error(
        "--frontier shows many sizes at once: it takes no goal, no --search-time, no -o and no "
        "--tensor-types; for a file use --json > FILE");
  SessionSettings settings = options.session.resolved(goal ? &*goal : nullptr);
  settings.aims = false;  // a plan alone is not measured
  for (const auto& file : {options.output, options.tensor_types})
    if (!file.empty()) check_output(file, settings.model, options.force);
  check_distinct({{"-o", options.output},
                  {"--tensor-types", options.tensor_types},
                  {"--db", db_name(settings)}});
  check_texts(settings, {options.output, options.tensor_types});
  Session session(context.runtime(), settings);
  warn_beyond_training(context, session.model().context_length, settings.n_ctx);
  const std::string model = shell_word(settings.model.string()), same = repeated(options.session);
  if (!goal) {
    show_frontier(context, session, options.frontier);
    context.suggest(fmt::format("microtome plan {}{} --size SIZE -o plan.json", model, same));
    return exit_done;
  }

  std::vector<std::string> notes;
  const Plan plan = planned(session, *goal, notes);
  for (const std::string& note : notes) context.note(note);
  note_windows(context, session);
  if (!options.tensor_types.empty()) write_text(options.tensor_types, tensor_type_file(plan));
  if (!options.output.empty()) write_text(options.output, to_json(plan));
  if (context.json || options.output.empty()) {
    context.print(to_json(plan) + "\n");
    return exit_done;
  }
  if (goal->max_kl)
    context.note(
        "by prediction alone, the sum of the places' losses (a plan for a size states what was "
        "measured of it as a whole); compress measures, and plans again where that misses");
  context.print(fmt::format(
      "{}: {} bytes, predicted KL {} nats a token{}\n{}plan: {}\n", printable(plan.goal),
      grouped(plan.predicted_bytes), readable_number(plan.predicted_kl),
      plan.optimality_gap < 0 ? ""
      : plan.optimality_gap < 1e-6
          ? " (optimal)"
          : fmt::format(" (optimal within {:.2g} %)", 100 * plan.optimality_gap),
      plan.note.empty() ? "" : plan.note + "\n", printable(options.output.string())));
  context.suggest(fmt::format("microtome cut {} {}{} -o small.gguf", model,
                              shell_word(options.output.string()), same));
  return exit_done;
}

Run add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->session.declare(app);
  declare_biases(app, options->session.settings.biases);
  options->goal.declare(app);
  declare_search(app, options->session.settings.search_seconds);
  app.add_option("-o,--output", options->output, "Write the plan here (default: standard output)")
      ->type_name("FILE");
  app.add_option("--tensor-types", options->tensor_types,
                 "Write the plan for llama.cpp's quantizer (its --tensor-type-file)")
      ->type_name("FILE");
  app.add_flag("--force", options->force, "Overwrite what exists");
  app.add_option("--frontier", options->frontier,
                 "Show the best predicted loss at N sizes instead of one plan")
      ->expected(0, 1)
      ->default_str("12")
      ->check(within(2, 200))
      ->type_name("N");
  return [options, &app](Context& context) {
    if (app.get_option("--frontier")->count() && options->frontier == 0) options->frontier = 12;
    return run(context, *options);
  };
}

}  // namespace

const Command plan_command = {
    .name = "plan",
    .summary = "Decide the format of every tensor for a size or a loss",
    .examples =
        "microtome plan model.gguf --size 75MB -o plan.json\n"
        "microtome plan model.gguf --bpw 4.5 -o plan.json --tensor-types types.txt\n"
        "microtome plan model.gguf --frontier 12",
    .add = add};

}  // namespace mt::cli
