#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/checked.h"
#include "base/error.h"
#include "base/progress.h"
#include "compress/session.h"
#include "file/model_hash.h"
#include "flow/json_fields.h"

// What a session decides: the losses that are predicted and measured, what is within reach, the
// plan.
namespace mt {
namespace {

constexpr int64_t kRowsPredicted = 192;  // of a tensor, per format
constexpr int64_t kGoalBytes = 160;
constexpr double kMostLoss = 1e30;  // nats a token: what is kept above it is damaged
// Nats a token: below this the rounding of f32 sums shows as much as a cut.
constexpr double kNoise = 1e-6;
// Of a vector in a GGUF file's directory: lengths of name and shape, the shape, type and offset.
constexpr int64_t kTensorEntryBytes = 8 + 4 + 8 + 4 + 8;

int64_t elements(const Tensor& t) {
  int64_t n = 1;
  for (int64_t d : t.shape) n *= d;
  return n;
}

int64_t padded(int64_t bytes) {
  return static_cast<int64_t>(round_up(uint64_t(bytes), 32));
}

struct LossOf {
  double loss;
  std::pair<size_t, size_t> place;  // candidate, option
};

PlaceOptions largest_first(std::vector<LossOf> found) {
  std::stable_sort(found.begin(), found.end(),
                   [](const LossOf& a, const LossOf& b) { return a.loss > b.loss; });
  PlaceOptions places;
  for (const LossOf& f : found) places.push_back(f.place);
  return places;
}

bool contains(const PlaceOptions& places, const std::pair<size_t, size_t>& place) {
  return std::find(places.begin(), places.end(), place) != places.end();
}
}  // namespace

// The bytes of all that can be chosen; losses are zero. `as_it_is`: what the source's own formats
// take.
Problem Session::unmeasured(const Candidates& candidates, int64_t as_it_is) const {
  Problem p;
  for (const Candidate& c : candidates.all) {
    Place place{.name = c.tensor, .options = {}, .group = -1};
    for (size_t o = 0; o < c.dtypes.size(); ++o)
      place.options.push_back(
          {.dtype = c.dtypes[o],
           .keep = o == 0,
           .bytes = padded(c.source.rows * row_bytes(c.dtypes[o], c.source.cols)),
           .loss = 0});
    p.places.push_back(std::move(place));
  }
  int64_t place_bytes = 0;
  for (const LinearMap* map : linear_maps(*model_)) place_bytes += padded(map->weight.bytes());
  // What stays: metadata, directory, norms; and room for the text of the goal and for the padding
  // that a shorter directory may need.
  p.fixed_bytes = as_it_is - place_bytes + kGoalBytes + unwritten_bias_bytes({});
  if (!candidates.head_choices.empty()) {
    Exclusive choice{.name = "head", .alternatives = {}};
    for (const HeadChoice& h : candidates.head_choices)
      choice.alternatives.push_back({.label = h.tied_source, .places = h.candidates});
    p.alternatives.push_back(std::move(choice));
  }
  return p;
}

const Problem& Session::problem() {
  if (problem_) return *problem_;
  candidates_ = find_candidates(*model_, settings_.types, &profile());
  losses_.clear();

  uint64_t work = 0;
  for (const Candidate& c : candidates_->all) work += c.dtypes.size();
  Progress progress("predicting losses", work);
  for (const Candidate& c : candidates_->all) {
    std::vector<double> losses(c.dtypes.size());
    std::vector<Dtype> missing;
    for (size_t o = 0; o < c.dtypes.size(); ++o)
      if (auto v = db_->value(c.key, "predicted_kl", std::string(name(c.dtypes[o])));
          v && *v >= 0 && *v <= kMostLoss)
        losses[o] = *v;
      else
        missing.push_back(c.dtypes[o]);
    if (!missing.empty()) {
      auto found = rounding_loss(rt_, c.source, c.expectations, missing, kRowsPredicted);
      for (double loss : found)
        if (!std::isfinite(loss))
          throw_error(
              "'{}': what its rounding costs is not finite: weights of the model are "
              "damaged (NaN, infinite or far too large)",
              c.tensor);
      db_->begin();
      for (size_t i = 0; i < missing.size(); ++i) {
        db_->put(c.key, "predicted_kl", std::string(name(missing[i])), found[i]);
        losses[static_cast<size_t>(std::find(c.dtypes.begin(), c.dtypes.end(), missing[i]) -
                                   c.dtypes.begin())] = found[i];
      }
      db_->commit();
    }
    losses_.push_back(std::move(losses));
    progress.advance(c.dtypes.size());
  }
  Problem p = unmeasured(*candidates_, largest_bytes_as_it_is());
  sampled_ = checked_ = sampled_places(*candidates_, losses_, settings_.n_measured);
  text_factor_ =
      text_factor(rt_, *model_, calibration_->windows, *candidates_, losses_, sampled_, *db_);
  correct(p);
  sample_largest(p);
  check_unchanged();
  return problem_.emplace(std::move(p));
}

void Session::correct(Problem& problem) {
  // Few windows: a place's ratio needs little text.
  correction_ =
      measure_corrections(rt_, *model_, first_windows(calibration_->windows, kWindowsOfPlaces),
                          *candidates_, losses_, checked_, *db_);
  for (size_t i = 0; i < problem.places.size(); ++i)
    for (size_t o = 0; o < problem.places[i].options.size(); ++o)
      problem.places[i].options[o].loss = losses_[i][o] * correction_[i][o] * text_factor_;
  for (Place& place : problem.places)
    if (const auto f = role_factor_.find(role_of(place.name).role); f != role_factor_.end())
      for (Option& option : place.options) option.loss *= f->second;
}

void Session::sample_largest(Problem& problem) {
  for (int64_t left = settings_.n_measured; left > 0;) {
    // The largest of each place: the place's other formats follow it.
    std::vector<LossOf> found;
    for (size_t i = 0; i < problem.places.size(); ++i) {
      if (candidates_->all[i].key != candidates_->all[i].tensor) continue;
      LossOf largest{kMuch, {}};
      for (size_t o = 1; o < problem.places[i].options.size(); ++o)
        if (const double loss = problem.places[i].options[o].loss;
            loss > largest.loss && !contains(checked_, {i, o}))
          largest = {loss, {i, o}};
      if (largest.loss > kMuch) found.push_back(largest);
    }
    if (found.empty()) return;
    PlaceOptions places = largest_first(std::move(found));
    places.resize(std::min(places.size(), static_cast<size_t>(left)));
    checked_.insert(checked_.end(), places.begin(), places.end());
    sampled_ = checked_;
    correct(problem);
    left -= std::ssize(places);
  }
}

Plan Session::plan_of(const Solution& s) const {
  Plan plan = to_plan(*problem_, s);
  if (s.alternative.empty()) return plan;
  const HeadChoice& h = candidates_->head_choices[static_cast<size_t>(s.alternative[0])];
  if (!h.tied_source.empty()) {
    plan.head = HeadPlan::tied;
    plan.tied_source = h.tied_source;
  }
  return plan;
}

bool Session::measure_roles(const Plan& plan) {
  constexpr double kNear = 0.05, kLeast = 1e-4;  // ratios apart from 1; nats a token
  std::map<std::string, double> sums;
  for (const Decision& d : plan.decisions)
    if (const TensorRole r = role_of(d.place); r.layer >= 0) sums[r.role] += d.chosen.loss;
  std::set<std::string> roles;
  for (const auto& [role, sum] : sums)
    if (sum >= kLeast) roles.insert(role);
  bool moved = false;
  for (const auto& [role, loss] : role_losses(
           rt_, *model_, plan, [&] { return rounded(plan, Feedback::none); }, roles,
           first_windows(calibration_->windows, kWindowsOfPlaces), *db_)) {
    const double ratio = std::clamp(loss * text_factor_ / sums.at(role), 0.1, 10.0);
    role_factor_.try_emplace(role, 1).first->second *= ratio;
    moved = moved || std::fabs(ratio - 1) > kNear;
  }
  return moved;
}

// What a plan rests on that was not measured: the places that count for a hundredth of its loss or
// more, or would but for a correction that other layers taught, the largest first. A plan picks
// what seems cheap, and so, of many estimates, those that err low.
PlaceOptions Session::doubtful(const Solution& solution) const {
  std::vector<LossOf> found;
  for (size_t i = 0; i < solution.option.size(); ++i) {
    if (solution.option[i] < 1) continue;  // not written, or kept
    const auto o = static_cast<size_t>(solution.option[i]);
    const Candidate& c = candidates_->all[i];
    const double loss = std::max(losses_[i][o] * text_factor_, problem_->places[i].options[o].loss);
    // A tensor shared by a plan alone has no place of its own.
    if (loss < 0.01 * solution.loss || c.key != c.tensor || contains(checked_, {i, o})) continue;
    found.push_back({loss, {i, o}});
  }
  return largest_first(std::move(found));
}

int64_t Session::n_weights() const {
  int64_t n = 0;
  for (const Tensor& t : model_->file->tensors) n += elements(t);
  return n;
}

int64_t Session::unwritten_bias_bytes(const Plan& plan) const {
  if (!settings_.biases) return 0;
  int64_t bytes = 0;
  for (const LinearMap* map : maps_with_free_bias(*model_)) {
    const bool written =
        !map->bias.empty() ||
        std::any_of(plan.decisions.begin(), plan.decisions.end(), [&](const Decision& d) {
          return d.place == map->name && d.chosen.dtype != map->weight.dtype;
        });
    if (!written)
      bytes += padded(map->weight.rows * int64_t{sizeof(float)}) + kTensorEntryBytes +
               std::ssize(bias_name(*map));
  }
  return bytes;
}

// Of a file of `as_it_is` bytes with the source's own formats, what is no tensor.
int64_t Session::metadata_bytes(int64_t as_it_is) const {
  for (const Tensor& t : model_->file->tensors) as_it_is -= padded(std::ssize(t.data.bytes));
  return as_it_is;
}

// Bytes of the source's file as GGUF would hold it (a Hugging Face folder has no single file).
int64_t Session::source_bytes() const {
  const TensorFile& file = *model_->file;
  std::error_code none;
  int64_t total = 0;
  if (std::filesystem::is_regular_file(file.path, none)) {
    for (const auto& part : model_files(file.path))
      total += static_cast<int64_t>(std::filesystem::file_size(part));
    return total;
  }
  for (const Tensor& t : file.tensors) total += std::ssize(t.data.bytes);
  return total;
}

std::vector<FrontierPoint> Session::frontier(int points) {
  std::vector<FrontierPoint> curve;
  const int64_t metadata = metadata_bytes(largest_bytes_as_it_is());
  for (const Solution& s : mt::frontier(problem(), points, {}, source_bytes()))
    curve.push_back({.bytes = s.bytes,
                     .bits_per_weight = 8.0 * double(s.bytes - metadata) / double(n_weights()),
                     .predicted_kl = s.loss});
  return curve;
}

// Throws Error where a format fits no place at all.
void Session::check_fits(Dtype dtype) const {
  std::set<int64_t> rows;
  for (const Candidate& c : candidates_->all) {
    if (std::find(c.dtypes.begin(), c.dtypes.end(), dtype) != c.dtypes.end()) return;
    rows.insert(c.source.cols);
  }
  std::string fit;
  for (const DtypeInfo& d : all_dtypes())
    if (d.encodes &&
        std::all_of(rows.begin(), rows.end(), [&](int64_t n) { return n % d.block_length == 0; }))
      fit += (fit.empty() ? "" : ", ") + std::string(d.name);
  throw_error(
      "--type {}: its blocks of {} fit no row of this model (rows have {}); formats that fit: {}",
      name(dtype), info(dtype).block_length, fmt::join(rows, ", "), fit);
}

// What `--type` could not do, in one sentence: rows that its blocks do not fill take the format
// that llama.cpp's quantizer falls back to.
std::string Session::misfits(const Plan& plan, Dtype dtype) const {
  std::map<std::pair<int64_t, Dtype>, int64_t> places;  // by row length and format taken
  for (const Candidate& c : candidates_->all)
    for (const Decision& d : plan.decisions)
      if (d.place == c.key && d.chosen.dtype != dtype) ++places[{c.source.cols, d.chosen.dtype}];
  std::string text;
  int64_t n = 0;
  for (const auto& [what, count] : places) {
    n += count;
    text += fmt::format("{}{} with rows of {} take {}", text.empty() ? "" : ", ", count, what.first,
                        name(what.second));
  }
  if (n == 0) return "";
  return fmt::format("{} needs rows that are a multiple of {}: of {} places {}", name(dtype),
                     info(dtype).block_length, plan.decisions.size(), text);
}

std::optional<int64_t> Session::budget(const Goal& goal) {
  return budget(goal, goal.bits_per_weight ? metadata_bytes(largest_bytes_as_it_is()) : 0);
}

std::optional<int64_t> Session::budget(const Goal& goal, int64_t metadata) const {
  if (goal.bytes) return goal.bytes;
  if (!goal.bits_per_weight) return std::nullopt;
  return metadata + static_cast<int64_t>(*goal.bits_per_weight * double(n_weights()) / 8);
}

// What to do where not even the fewest bytes are small enough.
std::string Session::hint(const Goal& goal, int64_t fewest, int64_t metadata) const {
  const char last = goal.text.empty() ? ' ' : goal.text.back();
  if (goal.bytes && *goal.bytes < 10'000 && last >= '0' && last <= '9')  // no unit was given
    return fmt::format("did you mean {}MB?", goal.text);
  const auto& types = settings_.types;
  const bool all = std::all_of(all_dtypes().begin(), all_dtypes().end(), [&](const DtypeInfo& d) {
    return !d.encodes ||
           std::find(types.begin(), types.end(), *dtype_from_name(d.name)) != types.end();
  });
  const std::string wider = all ? "" : "more formats are offered with --types all";
  if (!goal.bits_per_weight) return wider;
  const double bits = 8.0 * double(fewest - metadata) / double(n_weights());
  return fmt::format("that is --bpw {:.3f}{}{}", std::ceil(1000 * bits) / 1000, all ? "" : "; ",
                     wider);
}

void Session::check_reachable(const Goal& goal) {
  const int64_t as_it_is = largest_bytes_as_it_is();
  const int64_t metadata = metadata_bytes(as_it_is);
  const auto bytes = budget(goal, metadata);
  if (!bytes) return;
  const Problem p = unmeasured(find_candidates(*model_, settings_.types, nullptr), as_it_is);
  const int64_t fewest = fewest_bytes(p);
  if (fewest > *bytes) minimise_loss(p, *bytes, {.hint = hint(goal, fewest, metadata)});
}

Plan Session::plan(const Goal& goal, double correction) {
  if (goal.uniform && std::find(settings_.types.begin(), settings_.types.end(), *goal.uniform) ==
                          settings_.types.end())
    throw_error("--type {}: the session was not given this format among its types",
                name(*goal.uniform));
  if (!problem_) check_reachable(goal);
  const Problem& p = problem();
  const int64_t metadata = metadata_bytes(largest_bytes_as_it_is());
  SolveSettings settings;
  settings.hint = hint(goal, fewest_bytes(p), metadata);
  auto solve = [&] {
    if (goal.uniform) return uniform(p, *goal.uniform, settings);
    if (goal.max_kl) return minimise_bytes(p, *goal.max_kl / correction, settings);
    return minimise_loss(p, budget(goal, metadata).value(), settings);
  };
  if (goal.uniform) check_fits(*goal.uniform);
  // What an earlier plan measured does not count: this one is as if it were the first.
  if (checked_ != sampled_ || !role_factor_.empty()) {
    checked_ = sampled_;
    role_factor_.clear();
    correct(*problem_);
  }
  Solution s = solve();
  // Measured, then planned again, until the plan rests on nothing doubtful.
  constexpr int kRounds = 4;
  for (int round = 0; round < kRounds && settings_.n_measured > 0 && !goal.uniform; ++round) {
    PlaceOptions more = doubtful(s);
    if (more.empty()) break;
    more.resize(std::min(more.size(), static_cast<size_t>((settings_.n_measured + 1) / 2)));
    checked_.insert(checked_.end(), more.begin(), more.end());
    correct(*problem_);
    s = solve();
  }
  // A plan for a KL is measured as a whole by who asked for it.
  const bool as_a_whole = settings_.n_measured > 0 && !goal.max_kl;
  constexpr int kRoleRounds = 2;
  for (int round = 0; round < kRoleRounds && as_a_whole && !goal.uniform; ++round) {
    if (!measure_roles(plan_of(s))) break;
    correct(*problem_);
    s = solve();
  }
  Plan plan = plan_of(s);
  if (as_a_whole && plan.predicted_kl > 0) {
    const double kl = whole_loss(
        rt_, *model_, plan, [&] { return rounded(plan, Feedback::none); },
        windows_of_text(calibration_->windows), *db_);
    if (kl > kNoise) plan.predicted_kl = kl;
  }
  if (goal.uniform) plan.note = misfits(plan, *goal.uniform);
  plan.model_sha256 = sha256_;
  plan.model_name = name_of_file(settings_.model);
  plan.goal = goal.text;
  plan.calibration = calibration_->name;
  plan.calibration_sha256 = calibration_->sha256;
  plan.predicted_kl *= correction;
  plan.fixed_bytes = p.fixed_bytes;
  plan.predicted_bytes = exact_bytes(plan);
  return plan;
}

std::string Session::key_of(const Plan& plan, const std::string& tensor) const {
  return plan.head == HeadPlan::tied && tensor == model_->embedding.name
             ? tensor + " as " + plan.tied_source
             : tensor;
}

Session::Edits Session::follow_edits(Plan& plan) {
  Edits edits;
  if (settings_.imatrix.empty()) {  // with one no text is read or sampled
    calibration();
    edits.predictions = !db_->rows("predicted_kl").empty();
  }
  const Candidates known = find_candidates(*model_, settings_.types, nullptr);  // as the problem's
  double before = 0, after = 0;
  int64_t more_bytes = 0;
  // Where a head was tied or untied by hand the bytes no longer add up: by more than metadata and
  // biases are, by less than a head in any format.
  const int64_t slack = 1024 + model_->embedding.weight.bytes() / 64;
  int64_t missing_bytes = plan.predicted_bytes - plan.fixed_bytes;
  for (const Decision& d : plan.decisions) missing_bytes -= d.chosen.bytes;
  const bool other_head = plan.fixed_bytes > 0 && std::abs(missing_bytes) > slack;
  edits.places += other_head;
  for (Decision& d : plan.decisions) {
    const auto c = std::find_if(
        known.all.begin(), known.all.end(),
        [&](const Candidate& candidate) { return candidate.key == key_of(plan, d.place); });
    if (c == known.all.end())
      throw_error("the plan names '{}', which {} does not have", d.place, settings_.model.string());
    if (d.chosen.keep && d.chosen.dtype != c->source.dtype)
      throw_error("the plan keeps '{}' as {}: it is {}; leave out \"keep\" to write it as {}",
                  d.place, name(d.chosen.dtype), name(c->source.dtype), name(d.chosen.dtype));
    const auto dtype = std::find(c->dtypes.begin(), c->dtypes.end(), d.chosen.dtype);
    if (dtype == c->dtypes.end()) continue;  // fits no row: the cut says so
    const Option stated = d.chosen;
    d.chosen.bytes = padded(c->source.rows * row_bytes(*dtype, c->source.cols));
    bool edited = d.chosen.bytes != stated.bytes;
    const bool of_head = other_head && d.place == model_->embedding.name;
    if (edits.predictions) {
      const Place& place = problem().places[static_cast<size_t>(c - known.all.begin())];
      const Option& now = place.options[static_cast<size_t>(dtype - c->dtypes.begin())];
      // Another loss alone comes of what the plan measured besides, unless it is that of another
      // format of as many bytes.
      edited |= now.loss != stated.loss &&
                std::any_of(place.options.begin(), place.options.end(), [&](const Option& other) {
                  return other.bytes == stated.bytes && other.loss == stated.loss;
                });
      if (edited || of_head) {
        d = decide(place, now);
        ++edits.predicted_again;
      }
    }
    edits.places += edited;
    more_bytes += d.chosen.bytes - stated.bytes;
    before += stated.loss;
    after += d.chosen.loss;
  }
  if (edits.places > 0)
    plan.goal = plan.goal.empty() ? "edited by hand" : plan.goal + ", edited by hand";
  plan.predicted_bytes = other_head ? exact_bytes(plan) : plan.predicted_bytes + more_bytes;
  if (edits.places + edits.predicted_again > 0) plan.optimality_gap = -1;
  if (edits.predicted_again > 0) {
    // A plan for a KL carries what was measured of it in its total.
    plan.predicted_kl = before > 0 ? plan.predicted_kl * after / before : after;
    plan.predicted_bytes = exact_bytes(plan);
  }
  return edits;
}

}  // namespace mt
