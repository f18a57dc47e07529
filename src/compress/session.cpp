#include "compress/session.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "base/checked.h"
#include "base/error.h"
#include "base/files.h"
#include "base/machine.h"
#include "base/progress.h"
#include "base/version.h"
#include "compress/corrections.h"
#include "cut/refine_state.h"
#include "file/model_hash.h"
#include "file/open.h"
#include "flow/json_fields.h"
#include "measure/moments.h"
#include "measure/place_loss.h"
#include "model/open.h"

namespace mt {
namespace {

constexpr int64_t kRowsPredicted = 192;  // of a tensor, per format
constexpr int64_t kGoalBytes = 160;
constexpr int64_t kRefinedWeights = 80 * int64_t{500'000'000};  // times steps, by default
constexpr const char* kNoHash = "0000000000000000000000000000000000000000000000000000000000000000";

// Bytes of the source's file as GGUF would hold it (a Hugging Face folder has no single file).
int64_t source_bytes(const TensorFile& file) {
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

int64_t elements(const Tensor& t) {
  int64_t n = 1;
  for (int64_t d : t.shape) n *= d;
  return n;
}

// Size and time of writing of every file of a model.
std::string state_of(const std::filesystem::path& model) {
  std::string state;
  for (const auto& file : model_files(model))
    state += fmt::format("{} {} {}\n", file.string(), std::filesystem::file_size(file),
                         std::filesystem::last_write_time(file).time_since_epoch().count());
  return state;
}

int64_t padded(int64_t bytes) {
  return static_cast<int64_t>(round_up(uint64_t(bytes), 32));
}

}  // namespace

Session::Session(const Runtime& rt, SessionSettings settings)
    : rt_(rt), settings_(std::move(settings)) {
  auto file = std::make_shared<const TensorFile>(open_model_file(settings_.model));
  source_state_ = state_of(settings_.model);
  sha256_ = mt::model_sha256(settings_.model);
  model_ = std::make_unique<Model>(open_model(file));
  tokenizer_ = Tokenizer::open(*file);
  if (settings_.refine_steps == kRefineByWeights)
    settings_.refine_steps =
        std::clamp<int64_t>(kRefinedWeights / std::max<int64_t>(1, n_weights()), 20, 80);
  if (settings_.db.empty()) settings_.db = Measurements::default_path(settings_.model, sha256_);
  db_ = Measurements::open(settings_.db);
}
Session::~Session() = default;

// The files are mapped: what another program writes into them is read as if it were the model.
void Session::check_unchanged() const {
  if (state_of(settings_.model) != source_state_)
    throw_error(
        "{}: was written to while it was being read: measurements made meanwhile are not of it; "
        "delete {} and run again",
        settings_.model.string(), settings_.db.string());
}

const Calibration& Session::calibration() {
  if (!calibration_)
    calibration_ = make_calibration(rt_, *model_, sha256_, *tokenizer_, settings_, *db_);
  return *calibration_;
}

const Profile& Session::profile() {
  if (!profile_) {
    calibration();
    profile_ = measure_moments(rt_, *model_, calibration_->windows, settings_.seed, *db_);
  }
  return *profile_;
}

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
  p.fixed_bytes = as_it_is - place_bytes + kGoalBytes;
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
          v && std::isfinite(*v) && *v >= 0)
        losses[o] = *v;
      else
        missing.push_back(c.dtypes[o]);
    if (!missing.empty()) {
      auto found = rounding_loss(rt_, c.source, c.expectations, missing, kRowsPredicted);
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
  Problem p = unmeasured(*candidates_, exact_bytes({}));
  problem_ = std::move(p);
  checked_.clear();
  correct();
  check_unchanged();
  return *problem_;
}

void Session::correct() {
  // Few windows: a place's ratio needs little text.
  correction_ = measure_corrections(rt_, *model_, first_windows(calibration_->windows, 2),
                                    *candidates_, losses_, settings_.n_measured, *db_, checked_);
  for (size_t i = 0; i < problem_->places.size(); ++i)
    for (size_t o = 0; o < problem_->places[i].options.size(); ++o)
      problem_->places[i].options[o].loss = losses_[i][o] * correction_[i][o];
}

// What a plan rests on that was not measured: the places that count for a hundredth of its loss or
// more, or would but for a correction that other layers taught, the largest first. A plan picks
// what seems cheap, and so, of many estimates, those that err low.
PlaceOptions Session::doubtful(const Solution& solution) const {
  std::vector<std::pair<double, std::pair<size_t, size_t>>> found;
  for (size_t i = 0; i < solution.option.size(); ++i) {
    if (solution.option[i] < 1) continue;  // not written, or kept
    const auto o = static_cast<size_t>(solution.option[i]);
    const Candidate& c = candidates_->all[i];
    const double loss = std::max(losses_[i][o], problem_->places[i].options[o].loss);
    // A tensor shared by a plan alone has no place of its own.
    if (loss < 0.01 * solution.loss || c.key != c.tensor ||
        std::find(checked_.begin(), checked_.end(), std::pair(i, o)) != checked_.end())
      continue;
    found.push_back({loss, {i, o}});
  }
  std::sort(found.begin(), found.end(), std::greater<>());
  PlaceOptions places;
  for (const auto& [loss, place] : found) places.push_back(place);
  return places;
}

int64_t Session::n_weights() const {
  int64_t n = 0;
  for (const Tensor& t : model_->file->tensors) n += elements(t);
  return n;
}

// Of a file of `as_it_is` bytes with the source's own formats, what is no tensor.
int64_t Session::metadata_bytes(int64_t as_it_is) const {
  for (const Tensor& t : model_->file->tensors) as_it_is -= padded(std::ssize(t.data.bytes));
  return as_it_is;
}

std::vector<FrontierPoint> Session::frontier(int points) {
  std::vector<FrontierPoint> curve;
  const int64_t metadata = metadata_bytes(exact_bytes({}));
  for (const Solution& s : mt::frontier(problem(), points, {}, source_bytes(*model_->file)))
    curve.push_back({.bytes = s.bytes,
                     .bits_per_weight = 8.0 * double(s.bytes - metadata) / double(n_weights()),
                     .predicted_kl = s.loss});
  return curve;
}

Imatrix Session::imatrix() {
  const Profile& p = profile();
  Imatrix m;
  m.datasets = {calibration_->name};
  m.chunk_count = std::ssize(calibration_->windows);
  m.chunk_size = std::ssize(calibration_->windows.front());
  for (const auto& [name, moments] : p.maps) {
    ImatrixEntry e{.tensor = name, .in_sum2 = moments.in2, .count = double(p.n_tokens)};
    for (float& x : e.in_sum2) x *= static_cast<float>(p.n_tokens);
    m.entries.push_back(std::move(e));
  }
  return m;
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
  return budget(goal, goal.bits_per_weight ? metadata_bytes(exact_bytes({})) : 0);
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
  const int64_t as_it_is = exact_bytes({});
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
  const int64_t metadata = metadata_bytes(exact_bytes({}));
  SolveSettings settings;
  settings.hint = hint(goal, fewest_bytes(p), metadata);
  auto solve = [&] {
    if (goal.uniform) return uniform(p, *goal.uniform, settings);
    if (goal.max_kl) return minimise_bytes(p, *goal.max_kl / correction, settings);
    return minimise_loss(p, budget(goal, metadata).value(), settings);
  };
  if (goal.uniform) check_fits(*goal.uniform);
  if (!checked_.empty()) {  // of an earlier plan: this one is as if it were the first
    checked_.clear();
    correct();
  }
  Solution s = solve();
  // Measured, then planned again, until the plan rests on nothing doubtful.
  constexpr int kRounds = 4;
  for (int round = 0; round < kRounds && settings_.n_measured > 0 && !goal.uniform; ++round) {
    PlaceOptions more = doubtful(s);
    if (more.empty()) break;
    more.resize(std::min(more.size(), static_cast<size_t>((settings_.n_measured + 1) / 2)));
    checked_.insert(checked_.end(), more.begin(), more.end());
    correct();
    s = solve();
  }
  Plan plan = to_plan(p, s);
  if (goal.uniform) plan.note = misfits(plan, *goal.uniform);
  plan.model_sha256 = sha256_;
  plan.model_name = name_of_file(settings_.model);
  plan.goal = goal.text;
  plan.calibration = calibration_->name;
  plan.calibration_sha256 = calibration_->sha256;
  if (!s.alternative.empty()) {
    const HeadChoice& h = candidates_->head_choices[static_cast<size_t>(s.alternative[0])];
    if (!h.tied_source.empty()) {
      plan.head = HeadPlan::tied;
      plan.tied_source = h.tied_source;
    }
  }
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
    if (edits.predictions) {
      const Place& place = problem().places[static_cast<size_t>(c - known.all.begin())];
      const Option& now = place.options[static_cast<size_t>(dtype - c->dtypes.begin())];
      // Another loss alone comes of what the plan measured besides, unless it is that of another
      // format of as many bytes.
      edited |= now.loss != stated.loss &&
                std::any_of(place.options.begin(), place.options.end(), [&](const Option& other) {
                  return other.bytes == stated.bytes && other.loss == stated.loss;
                });
      if (edited) {
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
  plan.predicted_bytes += more_bytes;
  if (edits.places + edits.predicted_again > 0) plan.optimality_gap = -1;
  if (edits.predicted_again > 0) {
    // A plan for a KL carries what was measured of it in its total.
    plan.predicted_kl = before > 0 ? plan.predicted_kl * after / before : after;
    plan.predicted_bytes = exact_bytes(plan);
  }
  return edits;
}

Model Session::cut(const Plan& plan) {
  if (!settings_.imatrix.empty()) {
    const Imatrix m = read_imatrix(settings_.imatrix);
    const auto maps = linear_maps(*model_);
    const bool weighs = std::any_of(m.entries.begin(), m.entries.end(), [&](const ImatrixEntry& e) {
      return std::any_of(e.in_sum2.begin(), e.in_sum2.end(), [](float x) { return x > 0; }) &&
             std::any_of(maps.begin(), maps.end(),
                         [&](const LinearMap* map) { return map->name == e.tensor; });
    });
    if (!weighs)
      throw_error("{}: imatrix: expected sums above zero for a tensor of {}, found none",
                  settings_.imatrix.string(), settings_.model.string());
    return cut_model(rt_, *model_, plan, [&](const std::string& tensor) -> RowWeights {
      for (const ImatrixEntry& e : m.entries)
        if (e.tensor == tensor)
          return [sums = e.in_sum2, tensor](int64_t, std::span<float> w) {
            if (sums.size() != w.size())
              throw_error("imatrix: '{}': expected {} channels, found {}", tensor, w.size(),
                          sums.size());
            std::copy(sums.begin(), sums.end(), w.begin());
          };
      return row_weights(nullptr, tensor, Role::map);  // llama.cpp's have no embedding
    });
  }
  const auto candidates = find_candidates(*model_, settings_.types, &profile());
  if (settings_.feedback == Feedback::sequential) cut_.clear();  // each hangs on those before it
  Plan missing = plan;
  for (Decision& d : missing.decisions) {
    const auto known = cut_.find(key_of(plan, d.place));
    if (known != cut_.end() && known->second.dtype == d.chosen.dtype) d.chosen.keep = true;
  }
  Model cut = cut_model(
      rt_, *model_, missing,
      [&](const std::string& tensor) -> RowWeights {
        for (const Candidate& c : candidates.all)
          if (c.key == key_of(plan, tensor)) return c.weights;
        throw_error("'{}' is no place of {}", tensor, settings_.model.string());
      },
      settings_.feedback, calibration().windows);
  std::map<std::string, Weight> made;
  for (LinearMap* map : linear_maps(cut))
    for (size_t i = 0; i < plan.decisions.size(); ++i) {
      if (plan.decisions[i].place != map->name || plan.decisions[i].chosen.keep) continue;
      if (missing.decisions[i].chosen.keep) map->weight = cut_.at(key_of(plan, map->name));
      made.emplace(key_of(plan, map->name), map->weight);
    }
  cut_ = std::move(made);
  return cut;
}

// Where all is kept there is nothing to mend.
int64_t Session::steps_of(const Plan& plan) const {
  const bool all_kept = std::all_of(plan.decisions.begin(), plan.decisions.end(),
                                    [](const Decision& d) { return d.chosen.keep; });
  return all_kept ? 0 : settings_.refine_steps;
}

Refined Session::refine(const Plan& plan, const Model& cut) {
  if (steps_of(plan) == 0) return {.model = cut, .losses = {}};
  RefineSettings settings;
  settings.steps = steps_of(plan);
  settings.seed = settings_.seed;
  settings.checkpoint = settings_.db;
  settings.checkpoint += ".refine-" + sha256_hex(to_json(plan)).substr(0, 12);
  refine_states_.push_back(settings.checkpoint);
  Refined refined = mt::refine(rt_, *model_, cut, calibration().refine, settings);
  refined_[to_json(plan)] = {refined.first_loss(), refined.last_loss()};
  return refined;
}

Comparison Session::measure(const std::string& part, const Windows& windows, const Model& cut) {
  // By the weights themselves: plans, texts and settings may differ and make the same ones.
  const std::string metric = part + " of " + content_hash(cut);
  auto place = [&](int64_t window) { return fmt::format("{} window {}", part, window); };
  EvalOptions options;
  options.label = part == "proof" ? "proving" : "measuring the plan";
  options.stored = [&](int64_t window) -> std::optional<WindowStats> {
    const auto packed = db_->vector(place(window), metric);
    if (!packed) return std::nullopt;
    try {
      return WindowStats::unpack(*packed);
    } catch (const Error& e) {
      throw_error("{}: {}; delete the file to measure anew, or name another with --db",
                  settings_.db.string(), e.what());
    }
  };
  options.store = [&](int64_t window, const WindowStats& stats) {
    db_->put(place(window), metric, stats.pack());
  };
  return compare(rt_, *model_, cut, windows, options);
}

Comparison Session::prove(const Model& cut) {
  Comparison c = measure("proof", calibration().proof, cut);
  c.corpus = proof_name();
  c.corpus_sha256 = hash_of(calibration_->proof);
  return c;
}

Comparison Session::aim(const Model& cut) {
  Comparison c = measure("aim", calibration().aim, cut);
  c.corpus = calibration_->aim_name;
  c.corpus_sha256 = hash_of(calibration_->aim);
  return c;
}

std::string Session::proof_name() {
  return (settings_.texts.empty() ? "text " : "") + calibration_name(settings_) + " (held out)";
}

Receipt Session::receipt(const Plan& plan, const Comparison* proof) {
  Receipt r;
  r.version = version();
  r.source_sha256 = sha256_;
  r.goal = plan.goal;
  r.aimed_on = plan.aimed_on;
  r.plan_sha256 = plan.decisions.empty() ? kNoHash : sha256_hex(to_json(plan));
  if (settings_.imatrix.empty()) {
    r.calibration = calibration_name(settings_);
    r.calibration_sha256 = calibration_ ? calibration_->sha256 : kNoHash;
  } else {  // no text is read or sampled for it
    r.calibration = name_of_file(settings_.imatrix);
    r.calibration_sha256 = mt::model_sha256(settings_.imatrix);
  }
  r.predicted_kl = plan.predicted_kl;
  r.proved = proof != nullptr;
  if (proof) {
    r.proof = proof->corpus;
    r.proof_sha256 = proof->corpus_sha256;
    r.measured_kl = proof->kl_mean.value;
    r.measured_kl_low = proof->kl_mean.low;
    r.measured_kl_high = proof->kl_mean.high;
    r.measured_same_top = proof->same_top.value;
  }
  r.feedback = settings_.feedback;
  r.refine_steps = steps_of(plan);
  if (const auto it = refined_.empty() ? refined_.end() : refined_.find(to_json(plan));
      it != refined_.end())
    std::tie(r.refine_first_kl, r.refine_last_kl) = it->second;
  return r;
}

int64_t Session::bytes_with(const Plan& plan, const Receipt& receipt) const {
  Model shape = *model_;  // formats only: no bytes are asked for
  if (plan.head == HeadPlan::tied) shape.head.reset();
  for (LinearMap* map : linear_maps(shape))
    for (const Decision& d : plan.decisions)
      if (d.place == map->name) map->weight.dtype = d.chosen.dtype;
  Output output = output_of(*model_, shape, receipt);
  return gguf_file_bytes(output.metadata, output.tensors);
}

int64_t Session::exact_bytes(const Plan& plan) {
  // The figures of a proof take the same bytes whatever they are.
  Comparison proof;
  proof.corpus = proof_name();
  proof.corpus_sha256 = kNoHash;
  return bytes_with(plan, receipt(plan, &proof));
}

void Session::write(const std::filesystem::path& path, const Model& cut, const Plan& plan,
                    const std::optional<Comparison>& proof) {
  check_unchanged();
  Output output = output_of(*model_, cut, receipt(plan, proof ? &*proof : nullptr));
  write_gguf(path, output.metadata, output.tensors);
  std::error_code none;
  for (const auto& state : refine_states_) std::filesystem::remove(state, none);
}

Report Session::report(const Plan& plan, const Model& cut, const Comparison& proof) {
  Report r;
  r.source = settings_.model.string();
  r.source_sha256 = sha256_;
  r.goal = plan.goal;
  r.source_bytes = source_bytes(*model_->file);
  r.output_bytes = plan.predicted_bytes;
  r.predicted_kl = plan.predicted_kl;
  r.optimality_gap = plan.optimality_gap;
  r.comparisons = {proof};
  r.version = version();
  r.cpu = cpu_name();

  std::map<std::string, const LinearMap*> before;
  for (const LinearMap* map : linear_maps(*model_)) before[map->name] = map;
  int64_t from_bytes = 0, to_bytes = 0;
  for (const auto& [name, map] : before) {
    from_bytes += map->weight.bytes();
  }
  std::map<std::string, const LinearMap*> after;
  for (const LinearMap* map : linear_maps(cut)) {
    after[map->name] = map;
    to_bytes += map->weight.bytes();
  }
  for (const Decision& d : plan.decisions) {
    const TensorRole role = role_of(d.place);
    const Weight& old = before.at(d.place)->weight;
    const Weight& now = after.at(d.place)->weight;
    r.places.push_back({.place = d.place,
                        .layer = role.layer,
                        .role = role.role,
                        .from = std::string(name(old.dtype)),
                        .to = std::string(name(now.dtype)),
                        .n_weights = now.rows * now.cols,
                        .bytes_from = old.bytes(),
                        .bytes_to = now.bytes(),
                        .predicted_kl = d.chosen.loss});
  }
  // All tensors count, norms too; against the same number of weights, so that a head which is
  // shared saves all of its bits.
  for (const Tensor& t : model_->file->tensors)
    if (!before.contains(t.name)) {
      from_bytes += std::ssize(t.data.bytes);
      to_bytes += std::ssize(t.data.bytes);
    }
  r.n_weights = n_weights();
  r.source_bits = 8.0 * double(from_bytes) / double(r.n_weights);
  r.output_bits = 8.0 * double(to_bytes) / double(r.n_weights);
  return r;
}

void Session::measure_largest(Report& report, const Model& cut, int64_t n) {
  std::vector<PlaceReport*> order;
  for (PlaceReport& p : report.places)
    if (p.from != p.to) order.push_back(&p);
  std::stable_sort(order.begin(), order.end(), [](const PlaceReport* a, const PlaceReport* b) {
    return a->predicted_kl > b->predicted_kl;
  });
  order.resize(std::min<size_t>(order.size(), static_cast<size_t>(n)));
  if (order.empty() || bool(model_->head) != bool(cut.head)) return;
  const Windows few = first_windows(calibration().proof, 2);
  PlaceLoss loss(rt_, *model_, few);
  Progress progress("measuring the largest losses", order.size());
  for (PlaceReport* p : order) {
    for (const LinearMap* map : linear_maps(cut))
      if (map->name == p->place) p->measured_kl = loss.measure(p->place, map->weight);
    progress.advance();
  }
}

}  // namespace mt
