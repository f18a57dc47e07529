#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace mt {

// Rows (place, metric, setting -> value) of one model, kept in an SQLite file beside it: measured
// once, resumed after an interruption, read by every later command. Rows belong to a run: the
// triple (model hash, corpus hash, settings). Two processes may use one file at once.
class Measurements {
 public:
  // Opens or creates. Throws Error naming the file (corrupt, not a database, not writable).
  static std::unique_ptr<Measurements> open(const std::filesystem::path& db);
  // The database of a model: `<model>.microtome.db` beside it, or, where that folder cannot be
  // written, in $XDG_CACHE_HOME/microtome (~/.cache/microtome) under the model's hash.
  static std::filesystem::path default_path(const std::filesystem::path& model,
                                            const std::string& model_sha256);
  virtual ~Measurements() = default;

  virtual std::filesystem::path path() const = 0;  // for messages
  // Selects (creating if new) the run that the calls below read and write.
  virtual void select_run(const std::string& model_sha256, const std::string& corpus_sha256,
                          const std::string& settings) = 0;

  virtual std::optional<double> value(const std::string& place, const std::string& metric,
                                      const std::string& setting) = 0;
  virtual void put(const std::string& place, const std::string& metric, const std::string& setting,
                   double value) = 0;
  virtual std::optional<std::vector<float>> vector(const std::string& place,
                                                   const std::string& metric) = 0;
  virtual void put(const std::string& place, const std::string& metric,
                   const std::vector<float>& values) = 0;
  virtual std::optional<std::string> text(const std::string& place, const std::string& metric) = 0;
  virtual void put_text(const std::string& place, const std::string& metric,
                        const std::string& text) = 0;
  struct Row {
    std::string place, metric, setting;
    double value;
  };
  // Ordered by place, then setting.
  virtual std::vector<Row> rows(const std::string& metric) = 0;
  // Everything put between begin and commit is kept together or not at all. A begin without commit
  // (an exception left it) is dropped by the next begin or the end of the object. Other writers
  // wait meanwhile (a minute, then they throw): keep it short.
  virtual void begin() = 0;
  virtual void commit() = 0;
};

}  // namespace mt
