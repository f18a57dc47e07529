#include <algorithm>

#include "base/error.h"
#include "base/files.h"
#include "cli/session_options.h"
#include "compress/carry_out.h"
#include "file/model_hash.h"
#include "report/format.h"

namespace mt::cli {
namespace {

struct Options {
  SessionOptions session;
  std::filesystem::path plan, output;
  std::string imatrix;
  bool force = false, no_proof = false;
  std::optional<int64_t> refine_steps;
  std::optional<Feedback> feedback;
};

// A plan made for the goal keeps it; one that was edited may not.
void warn_of_missed_goal(Context& context, Session& session, const Goal& goal, const Plan& plan) {
  // Bits per weight count what a run on the text is needed for: not with an importance matrix.
  const bool has_text = session.settings().imatrix.empty();
  const auto budget = goal.bits_per_weight && !has_text ? std::nullopt : session.budget(goal);
  if (budget && plan.predicted_bytes > *budget)
    context.note(fmt::format(
        "warning: the plan was edited by hand and takes {} bytes now; its goal allows {}",
        grouped(plan.predicted_bytes), grouped(*budget)));
  if (goal.max_kl && plan.predicted_kl > *goal.max_kl)
    context.note(fmt::format(
        "warning: the plan was edited by hand and loses a predicted KL of {} now; its goal allows "
        "{}",
        readable_number(plan.predicted_kl), readable_number(*goal.max_kl)));
}

int run(Context& context, const Options& options) {
  SessionSettings settings = options.session.resolved();
  check_output(options.output, settings.model, options.force);
  check_distinct({{"-o", options.output},
                  {"PLAN", options.plan},
                  {"--imatrix", options.imatrix},
                  {"--db", db_name(settings)}});
  check_texts(settings, {options.output});
  Plan plan = plan_from_json(read_text_file(options.plan), options.plan.string());
  settings.imatrix = options.imatrix;
  settings.feedback = options.feedback.value_or(Feedback::none);
  if (!options.imatrix.empty() && settings.feedback != Feedback::none)
    throw_error(
        "--feedback: an importance matrix does not hold what it needs; give --text instead");
  if (!options.imatrix.empty() && settings.biases)
    throw_error("--biases: an importance matrix holds no mean inputs; give --text instead");
  settings.refine_steps = options.refine_steps.value_or(0);
  if (settings.refine_by != RefineBy::automatic && settings.refine_steps == 0)
    throw_error("--refine-by: nothing is refined; give the number of steps with --refine");
  if (!options.imatrix.empty() && settings.refine_steps > 0)
    throw_error("--refine: needs text, which an importance matrix is not; give --text instead");
  for (const Decision& d : plan.decisions)  // those that an edit may have brought in
    if (std::find(settings.types.begin(), settings.types.end(), d.chosen.dtype) ==
        settings.types.end())
      settings.types.push_back(d.chosen.dtype);
  Session session(context.runtime(), settings);
  warn_beyond_training(context, session.model().context_length, settings.n_ctx);
  if (!plan.model_sha256.empty() && plan.model_sha256 != session.model_sha256())
    throw_error("{}: made for another model: expected SHA-256 {}, {} has {}", options.plan.string(),
                plan.model_sha256, settings.model.string(), session.model_sha256());
  const bool other_text = settings.imatrix.empty() && !plan.calibration.empty() &&
                          plan.calibration != calibration_name(settings);
  const auto other_calibration = [&] {
    context.note(fmt::format(
        "the plan was made with other calibration text ({}) than this run rounds and proves with "
        "({}): its losses are not this text's; the same --text, --windows, --n-ctx and --seed make "
        "them so",
        printable(plan.calibration), printable(calibration_name(settings))));
  };
  if (other_text) other_calibration();  // before minutes are spent on it
  const Goal goal = stated_goal(plan.goal);
  const Session::Edits edits = session.follow_edits(plan);
  if (settings.imatrix.empty() && !edits.predictions)
    context.note(
        "the database has no predictions: the report and the receipt state the plan's own, also "
        "where it was edited since; 'microtome profile' with the same texts makes them");
  if (edits.places > 0) warn_of_missed_goal(context, session, goal, plan);
  if (settings.biases) {  // the plan may have been made without
    plan.predicted_bytes = session.exact_bytes(plan);
    if (edits.places == 0 && goal.bytes && plan.predicted_bytes > *goal.bytes)
      context.note(
          fmt::format("warning: with biases the file takes {} bytes, its goal allows {}; plan with "
                      "--biases too",
                      grouped(plan.predicted_bytes), grouped(*goal.bytes)));
  }
  if (settings.imatrix.empty() && !other_text && !plan.calibration_sha256.empty() &&
      plan.calibration_sha256 != session.calibration().sha256)
    other_calibration();
  Result result{.plan = std::move(plan), .cut = {}, .refined = {}, .proof = {}, .notes = {}};
  result.cut = session.cut(result.plan);
  std::optional<Comparison> proof;
  if (options.no_proof) {
    result.refined = session.refine(result.plan, result.cut).model;
  } else {
    refine_and_prove(session, result);
    proof = result.proof;
  }
  for (const std::string& note : result.notes) context.note(note);
  plan = std::move(result.plan);
  check_output(options.output, settings.model, options.force);
  session.write(options.output, result.refined, plan, proof, options.force);
  session.finish();
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(options.output));
  const bool holds = !goal.max_kl || !proof || proof->kl_mean.value <= *goal.max_kl;
  const int code = holds ? exit_done : exit_check_failed;
  if (!holds)
    context.note(fmt::format("the plan's bound does not hold: measured {:.4g}, asked {:.4g}",
                             proof->kl_mean.value, *goal.max_kl));
  if (context.json) {
    Json json = {{"output", options.output.string()},
                 {"bytes", bytes},
                 {"sha256", mt::model_sha256(options.output)},
                 {"predicted_kl", plan.predicted_kl}};
    json["places_edited"] = edits.places;
    if (edits.predictions) json["places_predicted_again"] = edits.predicted_again;
    if (proof)
      json["measured"] = {{"kl_mean", proof->kl_mean.value},
                          {"kl_low", proof->kl_mean.low},
                          {"kl_high", proof->kl_mean.high},
                          {"same_top", proof->same_top.value}};
    context.print_json(json);
    return code;
  }
  context.print(fmt::format("{}: {} bytes\n", printable(options.output.string()), grouped(bytes)));
  if (edits.places > 0)
    context.print(fmt::format("{} {} edited by hand", edits.places,
                              edits.places == 1 ? "place was" : "places were"));
  else if (edits.predicted_again > 0)
    context.print("other losses are known now than the plan states");
  if (edits.predicted_again > 0)
    context.print(fmt::format(": predicted again, KL {}", readable_number(plan.predicted_kl)));
  if (edits.places + edits.predicted_again > 0) context.print("\n");
  if (proof)
    context.print(fmt::format("mean KL {} nats a token; same top token {}\n",
                              proof->intervals_hold() ? readable_estimate(proof->kl_mean)
                                                      : readable_number(proof->kl_mean.value),
                              readable_share(proof->same_top.value)));
  context.suggest(
      fmt::format("microtome generate {} -p '...'", shell_word(options.output.string())));
  return code;
}

Run add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->session.declare(app);
  declare_feedback(app, options->feedback, "none");
  declare_biases(app, options->session.settings.biases);
  declare_refine(app, options->refine_steps, options->session.settings.refine_by, "0");
  app.add_option("PLAN", options->plan, "A plan as 'microtome plan' writes it")->required();
  app.add_option("-o,--output", options->output, "The GGUF file to write")
      ->required()
      ->type_name("FILE");
  app.add_flag("--force", options->force, "Overwrite what exists");
  app.add_option("--imatrix", options->imatrix,
                 "Weigh rounding errors by this importance matrix instead of a profile")
      ->type_name("FILE");
  app.add_flag("--no-proof", options->no_proof, "Do not measure the loss");
  return [options](Context& context) { return run(context, *options); };
}

}  // namespace

const Command cut_command = {
    .name = "cut",
    .summary = "Carry out a plan: write the smaller file",
    .examples =
        "microtome cut model.gguf plan.json -o small.gguf\n"
        "microtome cut model.gguf plan.json --refine 80 -o small.gguf\n"
        "microtome cut model.gguf plan.json --imatrix model.imatrix.gguf --no-proof -o small.gguf",
    .add = add};

}  // namespace mt::cli
