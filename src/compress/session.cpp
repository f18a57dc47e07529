#include "compress/session.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/error.h"
#include "base/files.h"
#include "base/machine.h"
#include "base/progress.h"
#include "base/version.h"
#include "cut/refine_layers.h"
#include "cut/refine_state.h"
#include "file/model_hash.h"
#include "file/open.h"
#include "flow/json_fields.h"
#include "measure/moments.h"
#include "measure/place_loss.h"
#include "model/open.h"

namespace mt {
namespace {

constexpr int64_t kRefinedWeights = 80 * int64_t{500'000'000};  // times steps, by default
constexpr const char* kNoHash = "0000000000000000000000000000000000000000000000000000000000000000";

}  // namespace

Session::Session(const Runtime& rt, SessionSettings settings)
    : rt_(rt), settings_(std::move(settings)) {
  auto file = std::make_shared<const TensorFile>(open_model_file(settings_.model));
  source_state_ = model_state(settings_.model);
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

void Session::check_unchanged() const {
  if (model_state(settings_.model) != source_state_)
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

Model Session::cut(const Plan& plan, Feedback feedback) {
  Model cut = rounded(plan, feedback);
  if (!settings_.biases) return cut;
  if (!means_) means_ = input_means(rt_, *model_, calibration().windows);
  correct_biases(rt_, *model_, *means_, cut);
  return cut;
}

Model Session::rounded(const Plan& plan) {
  return rounded(plan, settings_.feedback);
}

Model Session::rounded(const Plan& plan, Feedback feedback) {
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
  // What was rounded otherwise, or hangs on the layers before it, is rounded anew.
  if (feedback != cut_feedback_ || feedback == Feedback::sequential) cut_.clear();
  cut_feedback_ = feedback;
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
      feedback, calibration().windows);
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
  return keeps_all(plan) ? 0 : settings_.refine_steps;
}

Refined Session::refine(const Plan& plan, const Model& cut) {
  if (steps_of(plan) == 0) return {.model = cut, .losses = {}};
  RefineSettings settings;
  settings.steps = steps_of(plan);
  settings.seed = settings_.seed;
  settings.checkpoint = settings_.db;
  settings.checkpoint += ".refine-" + sha256_hex(to_json(plan)).substr(0, 12);
  refine_states_.push_back(settings.checkpoint);
  settings.by = settings_.refine_by;
  settings.channel_weights = stream_weights(*model_, profile());
  Refined refined = mt::refine(rt_, *model_, cut, calibration().refine, settings);
  refined_[to_json(plan)] = {refined.first_loss(), refined.last_loss(), refined.by_layer};
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
    r.intervals_hold = proof->intervals_hold();
    r.measured_kl_low = proof->kl_mean.low;
    r.measured_kl_high = proof->kl_mean.high;
    r.measured_same_top = proof->same_top.value;
  }
  r.feedback = keeps_all(plan) ? Feedback::none : settings_.feedback;
  r.biases = settings_.biases;
  r.refine_steps = steps_of(plan);
  if (const auto it = refined_.empty() ? refined_.end() : refined_.find(to_json(plan));
      it != refined_.end()) {
    r.refine_first_kl = it->second.first;
    r.refine_last_kl = it->second.last;
    r.refined_by_layer = it->second.layer;
  }
  return r;
}

int64_t Session::bytes_with(const Plan& plan, const Receipt& receipt) const {
  Model shape = *model_;  // formats only: no bytes are asked for
  if (plan.head == HeadPlan::tied) shape.head.reset();
  for (LinearMap* map : linear_maps(shape))
    for (const Decision& d : plan.decisions)
      if (d.place == map->name) map->weight.dtype = d.chosen.dtype;
  if (settings_.biases) {
    std::set<std::string> free;
    for (const LinearMap* map : maps_with_free_bias(*model_)) free.insert(map->name);
    std::map<std::string, Dtype> before;
    for (const LinearMap* map : linear_maps(*model_)) before[map->name] = map->weight.dtype;
    for (LinearMap* map : linear_maps(shape))
      if (free.contains(map->name) && map->weight.dtype != before.at(map->name))
        map->bias.resize(static_cast<size_t>(map->weight.rows));
  }
  Output output = output_of(*model_, shape, receipt);
  return gguf_file_bytes(output.metadata, output.tensors);
}

int64_t Session::exact_bytes(const Plan& plan) {
  // The figures of a proof take the same bytes whatever they are.
  Comparison proof;
  proof.corpus = proof_name();
  proof.corpus_sha256 = kNoHash;
  proof.n_windows = calibration_ ? std::ssize(calibration_->proof) : n_proof_windows(settings_);
  return bytes_with(plan, receipt(plan, &proof));
}

int64_t Session::largest_bytes_as_it_is() {
  Comparison proof;
  proof.corpus = proof_name();
  proof.corpus_sha256 = kNoHash;
  Receipt fullest = receipt({}, &proof);
  fullest.intervals_hold = true;
  fullest.feedback = Feedback::independent;
  fullest.refine_steps = 1;
  return bytes_with({}, fullest);
}

void Session::write(const std::filesystem::path& path, const Model& cut, const Plan& plan,
                    const std::optional<Comparison>& proof, bool replace) {
  check_unchanged();
  Output output = output_of(*model_, cut, receipt(plan, proof ? &*proof : nullptr));
  write_gguf(path, output.metadata, output.tensors, replace);
}

void Session::finish() {
  for (const auto& state : refine_states_) remove_refine_state(state);
}

Report Session::report(const Plan& plan, const Model& cut, const Comparison& proof) {
  Report r;
  r.source = settings_.model.string();
  r.source_sha256 = sha256_;
  r.goal = plan.goal;
  r.source_bytes = source_bytes();
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
  for (const auto& [name, map] : after)
    if (before.at(name)->bias.empty())
      to_bytes += std::ssize(map->bias) * static_cast<int64_t>(sizeof(float));
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
