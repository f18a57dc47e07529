#pragma once
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "compress/calibration.h"
#include "compress/corrections.h"
#include "compress/places.h"
#include "cut/biases.h"
#include "cut/cut.h"
#include "cut/refine.h"
#include "file/imatrix.h"
#include "flow/measurements.h"
#include "flow/report.h"
#include "measure/eval.h"
#include "text/tokenizer.h"

namespace mt {

struct SessionSettings : CalibrationSettings {
  std::filesystem::path model;
  std::filesystem::path db;   // empty: Measurements::default_path
  std::vector<Dtype> types;   // that the plan may choose from
  int64_t n_measured = 24;    // places whose loss is measured, not only predicted
  double search_seconds = 0;  // of local search on measured KL, after a plan for bytes
  Feedback feedback = Feedback::none;
  RefineBy refine_by = RefineBy::automatic;
  bool biases = false;            // corrected for the mean error of rounding (cut/biases.h)
  std::filesystem::path imatrix;  // weigh rounding by it instead of a profile (cut only)
};

// What a goal asks for: exactly one is set.
struct Goal {
  std::optional<int64_t> bytes;
  std::optional<double> bits_per_weight;
  std::optional<double> max_kl;
  std::optional<Dtype> uniform;
  std::string text;  // as asked, for people: "--size 75MB"
};

// The main flow over one model, stage by stage: every stage finds in the database what an earlier
// run left there, so that a killed run goes on where it was and ends with the same bytes.
class Session {
 public:
  Session(const Runtime& rt, SessionSettings settings);
  ~Session();

  const Runtime& runtime() const { return rt_; }
  const Model& model() const { return *model_; }
  const std::string& model_sha256() const { return sha256_; }
  const SessionSettings& settings() const { return settings_; }
  const std::filesystem::path& db_path() const { return settings_.db; }
  Measurements& db() { return *db_; }

  const Calibration& calibration();
  const Profile& profile();
  // Predicted losses of every candidate in every format, corrected by measured ones.
  const Problem& problem();
  // What the problem's places are of, one by one.
  const Candidates& candidates() const { return *candidates_; }
  // Of the candidate that a plan writes under this name.
  std::string key_of(const Plan& plan, const std::string& tensor) const;
  // Measured over predicted, place by place of the problem.
  const std::vector<std::vector<double>>& corrections() const { return correction_; }
  std::vector<FrontierPoint> frontier(int points);
  // The input moments in the form that llama.cpp's quantizer reads.
  Imatrix imatrix();

  // correction: measured over predicted KL of an earlier plan.
  Plan plan(const Goal& goal, double correction = 1);
  // Bytes that a goal allows the file: nothing for one in KL or in formats.
  std::optional<int64_t> budget(const Goal& goal);
  // What a plan that was edited by hand says of itself is brought in step with its formats: bytes,
  // the goal's text, and losses where the database has predictions. Throws Error where a place is
  // to be kept in another format than its own, or is none of the model.
  struct Edits {
    int64_t places = 0;           // whose format is not the one that the plan's figures are of
    int64_t predicted_again = 0;  // those, and where other measurements are known now
    bool predictions = false;     // the database has some
  };
  Edits follow_edits(Plan& plan);
  // Tensors that the cut before this one had in the same format are not made again.
  Model cut(const Plan& plan) { return cut(plan, settings_.feedback); }
  Model cut(const Plan& plan, Feedback feedback);
  // The same before biases are set.
  Model rounded(const Plan& plan);
  // The cut of the plan refined (cut/refine.h), settings.refine_steps steps long, on text that the
  // proof does not see; the cut itself where the steps are 0 or the plan keeps all. Its state lies
  // beside the database until finish().
  Refined refine(const Plan& plan, const Model& cut);
  // No refinement from here on: it did not help.
  void stop_refining() { settings_.refine_steps = 0; }
  // Nor error feedback.
  void stop_feedback() { settings_.feedback = Feedback::none; }
  // On the windows set aside. Window by window in the database, under the hash of the weights.
  Comparison prove(const Model& cut);
  // The same on the windows that a plan for a KL is made against: they prove nothing.
  Comparison aim(const Model& cut);
  // Bytes of the file that write() makes of this plan and a proof; without one it is smaller.
  int64_t exact_bytes(const Plan& plan);
  // Bytes of the source with the longest receipt, whatever the settings: `plan`, `compress` and
  // `cut` must decide alike, and none may write more than was asked for.
  int64_t largest_bytes_as_it_is();
  // What biases would add to that file if the plan kept no map; an empty plan keeps all.
  int64_t unwritten_bias_bytes(const Plan& plan) const;
  // replace: over a file that is there; without it Error is thrown where one is.
  void write(const std::filesystem::path& path, const Model& cut, const Plan& plan,
             const std::optional<Comparison>& proof, bool replace = true);
  // All that was asked for is there: what only a killed run would need goes.
  void finish();
  Report report(const Plan& plan, const Model& cut, const Comparison& proof);
  // Fills measured_kl of the n places with the largest predicted losses, each cut alone.
  void measure_largest(Report& report, const Model& cut, int64_t n);

 private:
  void check_unchanged() const;
  int64_t steps_of(const Plan& plan) const;  // of refinement
  Receipt receipt(const Plan& plan, const Comparison* proof);
  std::string proof_name();
  void correct(Problem& problem);  // its losses, by what is measured of checked_
  // Measures the largest predictions, settings.n_measured of them at most, and corrects the losses.
  void sample_largest(Problem& problem);
  PlaceOptions doubtful(const Solution& solution) const;
  Plan plan_of(const Solution& solution) const;
  // Measures the roles of a plan, each cut as a whole; gives whether that changes what is predicted
  // by much.
  bool measure_roles(const Plan& plan);
  Model rounded(const Plan& plan, Feedback feedback);
  void check_fits(Dtype dtype) const;
  void check_reachable(const Goal& goal);  // throws Error where no format is small enough
  std::optional<int64_t> budget(const Goal& goal, int64_t metadata) const;
  std::string hint(const Goal& goal, int64_t fewest, int64_t metadata) const;
  Problem unmeasured(const Candidates& candidates, int64_t as_it_is) const;
  int64_t bytes_with(const Plan& plan, const Receipt& receipt) const;
  std::string misfits(const Plan& plan, Dtype dtype) const;
  Comparison measure(const std::string& part, const Windows& windows, const Model& cut);
  int64_t source_bytes() const;
  int64_t n_weights() const;  // of all tensors
  int64_t metadata_bytes(int64_t as_it_is) const;

  const Runtime rt_;
  SessionSettings settings_;
  std::string sha256_, source_state_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Measurements> db_;
  std::optional<Calibration> calibration_;
  std::optional<Profile> profile_;
  std::optional<InputMeans> means_;
  std::optional<Candidates> candidates_;
  std::vector<std::vector<double>> losses_;      // [candidate][dtype], as predicted
  std::vector<std::vector<double>> correction_;  // [candidate][dtype], measured over predicted
  double text_factor_ = 1;                       // of all losses
  PlaceOptions sampled_;                         // measured before anything is planned
  PlaceOptions checked_;                         // these, and what the last plan rests on
  std::map<std::string, double> role_factor_;    // of the last plan's roles, together over sum
  std::optional<Problem> problem_;
  std::map<std::string, Weight> cut_;       // of the last cut, by candidate
  Feedback cut_feedback_ = Feedback::none;  // that it was made with
  // By plan: loss at first and at last, and whether layer by layer.
  struct RefinedBy {
    double first = 0, last = 0;
    bool layer = false;
  };
  std::map<std::string, RefinedBy> refined_;
  std::vector<std::filesystem::path> refine_states_;
};

}  // namespace mt
