#pragma once
#include "cli/command.h"
#include "compress/session.h"

namespace mt::cli {

// What profile, plan, cut and compress share: the model, the calibration text, the database, the
// formats.
struct SessionOptions {
  SessionSettings settings;
  std::string types = "default";
  void declare(CLI::App& app);
  // After parsing; what a goal needs of the session is seen to. Throws Error for a list of formats
  // that does not parse.
  SessionSettings resolved(const Goal* goal = nullptr) const;
};

// Of the commands that round weights.
void declare_feedback(CLI::App& app, std::optional<Feedback>& feedback,
                      const std::string& otherwise);
// "90", "90s", "10m", "1.5h": seconds. Throws Error that says what is accepted.
double parse_duration(const std::string& text);
void declare_search(CLI::App& app, double& seconds);
void declare_biases(CLI::App& app, bool& biases);
void declare_refine(CLI::App& app, std::optional<int64_t>& steps, RefineBy& by,
                    const std::string& otherwise);

// The options among these that another command needs to find the same measurements: " --text
// a.txt".
std::string repeated(const SessionOptions& options);

// The goal that a plan states, "--size 75MB"; none where it is no such text.
Goal stated_goal(const std::string& text);

// What a plan is asked for.
struct GoalOptions {
  std::string size, type;
  double bits_per_weight = 0, max_kl = 0;
  CLI::Option* size_option = nullptr;
  CLI::Option* bpw_option = nullptr;
  CLI::Option* kl_option = nullptr;
  CLI::Option* type_option = nullptr;
  void declare(CLI::App& app);
  bool given() const;
  // Throws Error unless exactly one goal is given, and one in bytes where seconds of search are
  // asked for.
  Goal resolved(double search_seconds = 0) const;
};

// Throws Error, before any work is done, where `output` is the input, exists without `force`, or
// lies in no folder that can be written.
void check_output(const std::filesystem::path& output, const std::filesystem::path& input,
                  bool force);

// Throws Error where one file is named twice, whatever the spelling; empty paths do not count.
struct NamedFile {
  const char* option;
  std::filesystem::path path;
};
void check_distinct(std::initializer_list<NamedFile> files);

// Throws Error where an output would take a calibration text's place.
void check_texts(const SessionSettings& settings,
                 std::initializer_list<std::filesystem::path> outputs);

// A note where the texts hold fewer windows than were asked for.
void note_windows(Context& context, Session& session);

// The database of these settings, or where it will most likely be.
std::filesystem::path db_name(const SessionSettings& settings);

// A text file, whole or not at all.
void write_text(const std::filesystem::path& path, const std::string& text, bool replace = true);

}  // namespace mt::cli
