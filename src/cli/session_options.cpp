#include "cli/session_options.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/error.h"
#include "base/files.h"
#include "file/model_hash.h"
#include "plan/ask.h"
#include "text/corpus.h"

namespace mt::cli {

namespace {
std::string list_of(const std::vector<Dtype>& types) {
  std::string list;
  for (Dtype d : types) list += (list.empty() ? "" : ", ") + std::string(name(d));
  return list;
}
}  // namespace

void SessionOptions::declare(CLI::App& app) {
  declare_model(app, settings.model);
  app.add_option("--text", settings.texts,
                 "Plain text to calibrate on, FILE or FILE:WEIGHT; may be repeated (default: text "
                 "sampled from the model itself)")
      ->allow_extra_args(false)
      ->type_name("FILE");
  app.add_option("--db", settings.db,
                 "Where measurements are kept (default: MODEL.microtome.db, or the cache folder "
                 "where that cannot be written)")
      ->type_name("FILE");
  app.add_option("--n-ctx", settings.n_ctx, "Tokens in a calibration window (default: 512, or 256)")
      ->check(within<int64_t>(8, 1 << 20))
      ->type_name("N");
  app.add_option("--windows", settings.n_windows,
                 "Calibration windows (default: 24, or 36 of sampled text)")
      ->check(within<int64_t>(1, 1 << 20))
      ->type_name("N");
  app.add_option("--proof-windows", settings.n_proof_windows,
                 "Windows set aside for the proof (default: 12)")
      ->check(within<int64_t>(1, 1 << 20))
      ->type_name("N");
  app.add_option("--seed", settings.seed, "Of everything that is drawn (default: 1)")
      ->check(seed_number())
      ->type_name("N");
  app.add_option("--types", types,
                 "Formats to choose from: \"Q4_0,Q8_0\", \"+Q2_0\", \"-IQ4_XS\", \"all\" (default: "
                 "those that today's readers load and run fast: " +
                     list_of(default_types()) + ")")
      ->type_name("LIST");
  app.add_option("--measured", settings.n_measured,
                 "Places whose loss is measured and not only predicted (default: 24)")
      ->check(within<int64_t>(0, 1 << 20))
      ->type_name("N");
}

void declare_feedback(CLI::App& app, std::optional<Feedback>& feedback,
                      const std::string& otherwise) {
  app.add_option_function<std::string>(
         "--feedback",
         [&feedback](const std::string& how) {
           feedback = how == "none"          ? Feedback::none
                      : how == "independent" ? Feedback::independent
                                             : Feedback::sequential;
         },
         fmt::format("Round with regard to how the errors of a row add up over the calibration "
                     "text, with the inputs of the original or of the layers already cut "
                     "(default: {})",
                     otherwise))
      ->check(CLI::IsMember({"none", "independent", "sequential"}))
      ->type_name("HOW");
}

double parse_duration(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const std::string unit(end, text.data() + text.size());
  const double seconds = unit.empty() || unit == "s"    ? 1
                         : unit == "m" || unit == "min" ? 60
                         : unit == "h"                  ? 3600
                                                        : -1;
  if (error != std::errc() || seconds < 0 || !(value >= 0) || !(value * seconds <= 1e7))
    throw_error(
        "'{}' is no time: expected seconds, minutes or hours as in 90, 90s, 10m or 1.5h, at most "
        "2777h",
        text);
  return value * seconds;
}

void declare_search(CLI::App& app, double& seconds) {
  app.add_option_function<std::string>(
         "--search-time",
         [&seconds](const std::string& text) {
           try {
             seconds = parse_duration(text);
           } catch (const Error& e) {
             throw CLI::ValidationError("--search-time", e.what());
           }
         },
         "Go on from the plan for at most so long, exchanging formats and keeping what lowers the "
         "KL measured on calibration text: 90s, 10m, 1h (default: 0); how far that comes depends "
         "on the machine")
      ->type_name("TIME");
}

void declare_biases(CLI::App& app, bool& biases) {
  app.add_flag("--biases", biases,
               "Correct the mean error of every rounded map by a bias, where readers of the "
               "architecture load one (llama: value, output and down maps; others: the biases that "
               "are there); counted in the file's size (default: no)");
}

void declare_refine(CLI::App& app, std::optional<int64_t>& steps, RefineBy& by,
                    const std::string& otherwise) {
  app.add_option_function<std::string>(
         "--refine-by",
         [&by](const std::string& what) {
           by = what == "model" ? RefineBy::model : RefineBy::layer;
         },
         "Refine by a backward pass through the whole model, or layer after layer on the layer's "
         "output: memory for one layer, about the same time, less gain (default: model where it "
         "has room, else layer)")
      ->check(CLI::IsMember({"model", "layer"}))
      ->type_name("WHAT");
  app.add_option("--refine", steps,
                 fmt::format("Steps of gradient descent on scales, norms and codes of few bits "
                             "after the cut (default: {})",
                             otherwise))
      ->check(within<int64_t>(0, 1 << 20))
      ->type_name("N");
}

SessionSettings SessionOptions::resolved(const Goal* goal) const {
  SessionSettings s = settings;
  s.types = parse_types(types);
  if (goal && goal->uniform &&
      std::find(s.types.begin(), s.types.end(), *goal->uniform) == s.types.end())
    s.types.push_back(*goal->uniform);
  s.aims = goal && goal->max_kl;
  return s;
}

std::string repeated(const SessionOptions& options) {
  const SessionSettings& s = options.settings;
  const SessionSettings usual;
  std::string text;
  auto add = [&](const char* option, const std::string& value) {
    text += fmt::format(" {} {}", option, shell_word(value));
  };
  for (const auto& file : s.texts) add("--text", file);
  if (!s.db.empty()) add("--db", s.db.string());
  for (const auto& [option, value] : {std::pair{"--n-ctx", s.n_ctx},
                                      {"--windows", s.n_windows},
                                      {"--proof-windows", s.n_proof_windows}})
    if (value > 0) add(option, std::to_string(value));
  if (s.seed != usual.seed) add("--seed", std::to_string(s.seed));
  if (s.n_measured != usual.n_measured) add("--measured", std::to_string(s.n_measured));
  if (options.types != SessionOptions().types) add("--types", options.types);
  if (s.biases) text += " --biases";
  return text;
}

Goal stated_goal(const std::string& text) {
  Goal goal;
  const auto value = [&](std::string_view option) {
    return text.starts_with(option) ? text.substr(option.size()) : "";
  };
  const auto number = [](const std::string& word) -> std::optional<double> {
    double x = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), x);
    if (error == std::errc() && x > 0 && x < 1e6) return x;
    return std::nullopt;
  };
  try {
    if (const auto size = value("--size "); !size.empty()) goal.bytes = parse_size(size);
  } catch (const Error&) {
    // A plan's goal is a text for people: it may say anything.
  }
  goal.bits_per_weight = number(value("--bpw "));
  goal.max_kl = number(value("--max-kl "));
  return goal;
}

void GoalOptions::declare(CLI::App& app) {
  size_option = app.add_option("--size", size, "Largest file: \"75MB\" (10^6), \"72MiB\" (2^20)")
                    ->type_name("SIZE");
  bpw_option = app.add_option("--bpw", bits_per_weight,
                              "Most bits per weight, all tensors counted, embedding and head too")
                   ->check(within(0.01, 64.0))
                   ->type_name("BITS");
  kl_option = app.add_option("--max-kl", max_kl,
                             "Smallest file whose mean KL divergence is at most this, nats a token")
                  ->check(within(1e-9, 1e3))
                  ->type_name("KL");
  type_option = app.add_option("--type", type, "Every map in this one format, for comparison")
                    ->type_name("TYPE");
}

bool GoalOptions::given() const {
  return size_option->count() + bpw_option->count() + kl_option->count() + type_option->count() > 0;
}

Goal GoalOptions::resolved(double search_seconds) const {
  Goal g;
  int n = 0;
  if (size_option->count() && ++n) {
    g.bytes = parse_size(size);
    g.text = "--size " + size;
  }
  if (bpw_option->count() && ++n) {
    g.bits_per_weight = bits_per_weight;
    g.text = fmt::format("--bpw {}", bits_per_weight);
  }
  if (kl_option->count() && ++n) {
    g.max_kl = max_kl;
    g.text = fmt::format("--max-kl {}", max_kl);
  }
  if (type_option->count() && ++n) {
    g.uniform = parse_type(type);
    g.text = "--type " + std::string(name(*g.uniform));
  }
  if (n != 1)
    throw Error(n == 0 ? "say what to aim for: --size 75MB, --bpw 4.5, --max-kl 0.02 or --type Q4_0"
                       : "--size, --bpw, --max-kl and --type are four goals: give one of them");
  if (search_seconds > 0 && !g.bytes && !g.bits_per_weight)
    throw Error(
        "--search-time: seeks the least loss in so many bytes: it goes with --size or --bpw");
  return g;
}

namespace {

bool is_part_of(const std::filesystem::path& output, const std::filesystem::path& input) {
  std::error_code none;
  if (!std::filesystem::exists(input, none)) return false;
  const auto files = model_files(input);
  return (std::filesystem::is_directory(input, none) &&
          std::filesystem::equivalent(std::filesystem::absolute(output).parent_path(), input,
                                      none)) ||
         std::any_of(files.begin(), files.end(), [&](const auto& file) {
           return std::filesystem::equivalent(output, file, none);
         });
}

}  // namespace

void check_output(const std::filesystem::path& output, const std::filesystem::path& input,
                  bool force) {
  if (output.empty()) throw_error("the name of an output is empty");
  std::error_code none;
  const bool exists = std::filesystem::exists(output, none);
  if (none == std::errc::filename_too_long)
    throw_error("{}: the name is too long; choose a shorter one", output.string());
  if (std::filesystem::equivalent(output, input, none))
    throw_error("{}: is the input; name another file", output.string());
  if (std::filesystem::is_symlink(std::filesystem::symlink_status(output, none)))
    throw_error("{}: is a symbolic link; name the file itself", output.string());
  if (exists) {
    if (is_part_of(output, input))
      throw_error("{}: is part of the input; name another file", output.string());
    if (!std::filesystem::is_regular_file(output, none))
      throw_error("{}: is no regular file; name another", output.string());
    if (!force) throw_error("{}: exists; overwrite it with --force", output.string());
  }
  auto folder = output.parent_path().empty() ? std::filesystem::path(".") : output.parent_path();
  if (!std::filesystem::is_directory(folder, none))
    throw_error("{}: the folder {} does not exist", output.string(), folder.string());
  if (::access(folder.c_str(), W_OK) != 0)
    throw_error("{}: the folder {} cannot be written", output.string(), folder.string());
}

void check_distinct(std::initializer_list<NamedFile> files) {
  std::error_code none;
  // Absolute first: of a name that does not exist yet, weakly_canonical leaves what is relative.
  auto settled = [&](const std::filesystem::path& path) {
    return std::filesystem::weakly_canonical(std::filesystem::absolute(path, none), none);
  };
  for (auto a = files.begin(); a != files.end(); ++a)
    for (auto b = files.begin(); b != a; ++b) {
      if (a->path.empty() || b->path.empty()) continue;
      if (settled(a->path) == settled(b->path) ||
          std::filesystem::equivalent(a->path, b->path, none))
        throw_error("{}: is named by both {} and {}; name two files", a->path.string(), b->option,
                    a->option);
    }
}

void check_texts(const SessionSettings& settings,
                 std::initializer_list<std::filesystem::path> outputs) {
  for (const auto& text : settings.texts)
    for (const auto& output : outputs)
      check_distinct({{"--text", parse_text_source(text).path}, {"an output", output}});
}

void note_windows(Context& context, Session& session) {
  const SessionSettings& asked = session.settings();
  const Calibration& got = session.calibration();
  const auto n = std::ssize(got.windows), n_proof = std::ssize(got.proof);
  if (n < asked.n_windows || n_proof < asked.n_proof_windows)
    context.note(
        fmt::format("the text holds {} windows to calibrate on and {} for the proof, fewer than "
                    "were asked for",
                    n, n_proof));
}

std::filesystem::path db_name(const SessionSettings& settings) {
  return settings.db.empty() ? std::filesystem::path(settings.model.string() + ".microtome.db")
                             : settings.db;
}

void write_text(const std::filesystem::path& path, const std::string& text, bool replace) {
  AtomicFile file(path, replace);
  file.write(text);
  file.commit();
}

}  // namespace mt::cli
