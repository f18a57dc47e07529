#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "cli/session_options.h"
#include "compress/corrections.h"
#include "file/imatrix.h"

namespace mt::cli {
namespace {

struct Options {
  SessionOptions session;
  std::filesystem::path imatrix;
  bool force = false;
};

int run(Context& context, const Options& options) {
  SessionSettings settings = options.session.resolved();
  if (!options.imatrix.empty()) check_output(options.imatrix, settings.model, options.force);
  check_distinct({{"--imatrix", options.imatrix}, {"--db", db_name(settings)}});
  check_texts(settings, {options.imatrix});
  Session session(context.runtime(), settings);
  warn_beyond_training(context, session.model().context_length, settings.n_ctx);
  const Problem& problem = session.problem();
  note_windows(context, session);
  if (!options.imatrix.empty()) write_imatrix(options.imatrix, session.imatrix());

  Json places = Json::array();
  // On a narrow terminal a column less, and names without the ending that all of them have.
  const int width = context.out.is_terminal ? context.out.width() : 0;
  const bool narrow = width > 0 && width < 80;
  std::vector<Table::Column> heads = {{"place"}, {"ratio", Table::Align::right}};
  if (!narrow) heads.push_back({"about 8 bits", Table::Align::right});
  heads.push_back({"about 4 bits", Table::Align::right});
  heads.push_back({"smallest", Table::Align::right});
  Table table(heads);
  for (size_t i = 0; i < problem.places.size(); ++i) {
    const Place& place = problem.places[i];
    // A tensor that may serve as another too stands under both names.
    const std::string& key = session.candidates().all[i].key;
    Json losses = Json::object();
    Json corrections = Json::object();
    for (size_t o = 0; o < place.options.size(); ++o) {
      const std::string dtype(name(place.options[o].dtype));
      losses[dtype] = place.options[o].loss;
      if (o > 0) corrections[dtype] = session.corrections()[i][o];
    }
    places.push_back({{"place", key}, {"correction", corrections}, {"loss", losses}});
    auto near = [&](double bits) {
      return *std::min_element(place.options.begin(), place.options.end(),
                               [&](const Option& a, const Option& b) {
                                 return std::abs(info(a.dtype).bits_per_weight() - bits) <
                                        std::abs(info(b.dtype).bits_per_weight() - bits);
                               });
    };
    auto cell = [&](double bits) {
      const Option o = near(bits);
      return fmt::format("{:.1e} {}", o.loss, name(o.dtype));
    };
    std::string shown = printable(key);
    if (narrow && shown.ends_with(".weight")) shown.resize(shown.size() - 7);
    std::vector<std::string> row = {shown, fmt::format("{:.2f}", session.corrections()[i][0])};
    if (!narrow) row.push_back(cell(8.5));
    row.push_back(cell(4.5));
    row.push_back(cell(0));
    table.row(std::move(row));
  }
  if (context.json) {
    context.print_json({{"model_sha256", session.model_sha256()},
                        {"calibration", session.calibration().name},
                        {"calibration_sha256", session.calibration().sha256},
                        {"db", session.db_path().string()},
                        {"tokens", session.profile().n_tokens},
                        {"places", places}});
    return exit_done;
  }
  context.print(table.text(width, context.out.colour) + "\n");
  context.print(folded(context,
                       "KL of each place alone in nats a token, by format; ratio: measured over "
                       "predicted, which the losses are corrected by already"));
  context.print(folded(
      context,
      fmt::format("{} tokens {}; kept in {}", grouped(session.profile().n_tokens),
                  printable(session.calibration().name), printable(session.db_path().string()))));
  context.suggest(fmt::format("microtome plan {}{} --frontier", shell_word(settings.model.string()),
                              repeated(options.session)));
  return exit_done;
}

Run add(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->session.declare(app);
  app.add_option("--imatrix", options->imatrix,
                 "Write the importance matrix for llama.cpp's quantizer too")
      ->type_name("FILE");
  app.add_flag("--force", options->force, "Overwrite what exists");
  return [options](Context& context) { return run(context, *options); };
}

}  // namespace

const Command profile_command = {
    .name = "profile",
    .summary = "Measure what each tensor's rounding would cost",
    .examples =
        "microtome profile model.gguf\n"
        "microtome profile model.gguf --text wiki.txt --text code.txt:0.5\n"
        "microtome profile model.gguf --imatrix model.imatrix.gguf",
    .add = add};

}  // namespace mt::cli
