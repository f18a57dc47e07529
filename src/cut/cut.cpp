#include "cut/cut.h"

#include <map>
#include <set>

#include "base/error.h"
#include "base/machine.h"
#include "base/progress.h"
#include "cut/biases.h"
#include "cut/feedback.h"
#include "run/forward.h"

namespace mt {

namespace {

using Decisions = std::map<std::string, const Decision*>;

// Maps of the cut by name, without the head where the plan ties it to the embedding.
std::map<std::string, LinearMap*> maps_to_decide(Model& cut, const Plan& plan) {
  const std::string& file = cut.file->path;
  std::map<std::string, LinearMap*> maps;
  for (LinearMap* map : linear_maps(cut)) maps[map->name] = map;
  if (plan.head != HeadPlan::tied) return maps;
  if (!cut.head)
    throw_error("the plan makes head and embedding one tensor, but {} has only one", file);
  if (plan.tied_source == cut.head->name)
    cut.embedding.weight = cut.head->weight;
  else if (plan.tied_source != cut.embedding.name)
    throw_error("the plan's tied_source is '{}': expected '{}' or '{}'", plan.tied_source,
                cut.head->name, cut.embedding.name);
  maps.erase(cut.head->name);
  cut.head.reset();
  return maps;
}

Decisions decisions_of(const Plan& plan, const std::map<std::string, LinearMap*>& maps,
                       const std::string& file) {
  Decisions decisions;
  for (const Decision& d : plan.decisions) {
    const auto it = maps.find(d.place);
    if (it == maps.end()) throw_error("the plan names '{}', which {} does not have", d.place, file);
    if (!decisions.emplace(d.place, &d).second) throw_error("the plan decides '{}' twice", d.place);
    const Weight& w = it->second->weight;
    const DtypeInfo& format = info(d.chosen.dtype);
    const bool written = !d.chosen.keep && d.chosen.dtype != w.dtype;
    if (written && !format.encodes)
      throw_error("the plan asks for {} in '{}', a format that is read here and not written",
                  format.name, d.place);
    if (written && w.cols % format.block_length)
      throw_error("the plan asks for {} in '{}', whose rows of {} it cannot hold", format.name,
                  d.place, w.cols);
  }
  for (const auto& [name, map] : maps)
    if (!decisions.contains(name))
      throw_error("the plan says nothing about '{}' of {}", name, file);
  return decisions;
}

// Carries decisions out, one map at a time.
class Cutter {
 public:
  Cutter(const Runtime& rt, Model& cut, const Plan& plan, const WeightsOf& weights)
      : rt_(rt),
        weights_(weights),
        maps_(maps_to_decide(cut, plan)),
        decisions_(decisions_of(plan, maps_, cut.file->path)),
        progress_("cutting", total()) {}

  bool changes(const LinearMap& map) const {
    const Option& chosen = decisions_.at(map.name)->chosen;
    return !chosen.keep && chosen.dtype != map.weight.dtype;
  }
  void encode(LinearMap& map, const Curvature* curvature = nullptr) {
    Weight& w = map.weight;
    if (changes(map)) {
      const Dtype dtype = decisions_.at(map.name)->chosen.dtype;
      w = curvature ? encode_with_feedback(rt_, w, dtype, *curvature, weights_(map.name))
                    : encode_weight(rt_, w, dtype, weights_(map.name));
    }
    progress_.advance(static_cast<uint64_t>(w.rows * w.cols));
  }

 private:
  uint64_t total() const {
    uint64_t n = 0;
    for (const auto& [name, map] : maps_)
      n += static_cast<uint64_t>(map->weight.rows * map->weight.cols);
    return n;
  }

  const Runtime& rt_;
  const WeightsOf& weights_;
  std::map<std::string, LinearMap*> maps_;
  Decisions decisions_;
  Progress progress_;
};

// The size is the file's word: a matrix of few rows may be as wide as the file is long.
std::unique_ptr<SecondMoment> moment_for(const LinearMap& map) {
  const int64_t n = map.weight.cols, machine = machine_bytes();
  const double bytes = 16.0 * double(n) * double(n);  // the moments and what is made of them
  if (machine > 0 && bytes > double(machine))
    throw_error(
        "--feedback: the rows of '{}' have {} columns: {:.1f} GB of second moments, this machine "
        "has {:.1f} GB of memory; cut it without --feedback",
        map.name, n, bytes / 1e9, double(machine) / 1e9);
  return std::make_unique<SecondMoment>(n);
}

// The layers one after another: inputs are gathered, maps rounded with them, and the stream
// carried past the layer.
void cut_layers(const Runtime& rt, const Model& source, Model& cut, bool sequential,
                const std::vector<std::vector<int32_t>>& windows, Cutter& cutter) {
  const Model& shown = sequential ? cut : source;
  std::vector<MatrixBuffer> streams;
  auto run = [&](size_t window, int64_t step, int64_t end, const Tap& tap) {
    const Chunk chunk{0, windows[window]};
    KvCache cache(shown, 1, std::ssize(chunk.tokens));
    ForwardOptions options{.path = Path::bf16, .tap = tap, .first_step = step, .end_step = end};
    if (step > 0) options.stream = &streams[window];
    return forward(rt, shown, cache, {&chunk, 1}, options);
  };
  for (size_t s = 0; s < cut.steps.size(); ++s) {
    const auto step = static_cast<int64_t>(s);
    struct Group {
      std::vector<LinearMap*> maps;
      std::unique_ptr<SecondMoment> moment;
    };
    std::map<Point, Group> groups;
    auto join = [&](Point point, std::initializer_list<LinearMap*> maps) {
      for (LinearMap* map : maps)
        if (cutter.changes(*map)) {
          Group& g = groups[point];
          if (!g.moment) g.moment = moment_for(*map);
          g.maps.push_back(map);
        } else {
          cutter.encode(*map);
        }
    };
    for (Site& site : cut.steps[s].sites) {
      if (auto* a = std::get_if<Attention>(&site.what)) {
        join(Point::attn_in, {&a->q, &a->k, &a->v});
        join(Point::attn_out, {&a->o});
      } else {
        auto& f = std::get<Mlp>(site.what);
        join(Point::mlp_in, {&f.gate, &f.up});
        join(Point::mlp_act, {&f.down});
      }
    }
    std::vector<MatrixBuffer> next(windows.size());
    for (size_t w = 0; w < windows.size(); ++w)
      next[w] = run(w, step, step + 1, [&](Point point, int64_t, Matrix x) {
        if (const auto it = groups.find(point); it != groups.end()) it->second.moment->add(rt, x);
      });
    for (auto& [point, group] : groups) {
      const Curvature curvature = Curvature::of(rt, *group.moment, group.maps.front()->name);
      group.moment.reset();
      for (LinearMap* map : group.maps) cutter.encode(*map, &curvature);
    }
    if (sequential && !groups.empty())
      for (size_t w = 0; w < windows.size(); ++w) next[w] = run(w, step, step + 1, {});
    streams = std::move(next);
  }
}

}  // namespace

Model cut_model(const Runtime& rt, const Model& source, const Plan& plan, const WeightsOf& weights,
                Feedback feedback, const std::vector<std::vector<int32_t>>& windows) {
  Model cut = source;
  Cutter cutter(rt, cut, plan, weights);
  cutter.encode(cut.embedding);
  const bool by_layer = feedback != Feedback::none;
  if (by_layer) cut_layers(rt, source, cut, feedback == Feedback::sequential, windows, cutter);
  for (LinearMap* map : linear_maps(cut)) {
    const bool is_head = cut.head && map == &*cut.head;
    if (map != &cut.embedding && (is_head || !by_layer)) cutter.encode(*map);
  }
  return cut;
}

namespace {

// llama.cpp's number for "mostly this type", which some readers show to people.
std::optional<uint32_t> file_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::F32:
      return 0;
    case Dtype::F16:
      return 1;
    case Dtype::Q4_0:
      return 2;
    case Dtype::Q4_1:
      return 3;
    case Dtype::Q8_0:
      return 7;
    case Dtype::Q5_0:
      return 8;
    case Dtype::Q5_1:
      return 9;
    case Dtype::Q2_K:
      return 10;
    case Dtype::Q3_K:
      return 12;
    case Dtype::Q4_K:
      return 15;
    case Dtype::Q5_K:
      return 17;
    case Dtype::Q6_K:
      return 18;
    case Dtype::IQ2_XXS:
      return 19;
    case Dtype::IQ2_XS:
      return 20;
    case Dtype::IQ3_XXS:
      return 23;
    case Dtype::IQ1_S:
      return 24;
    case Dtype::IQ4_NL:
      return 25;
    case Dtype::IQ3_S:
      return 26;
    case Dtype::IQ2_S:
      return 28;
    case Dtype::IQ4_XS:
      return 30;
    case Dtype::IQ1_M:
      return 31;
    case Dtype::BF16:
      return 32;
    case Dtype::TQ1_0:
      return 36;
    case Dtype::TQ2_0:
      return 37;
    case Dtype::MXFP4:
      return 38;
    case Dtype::I8:
    case Dtype::I16:
    case Dtype::I32:
    case Dtype::I64:
    case Dtype::F64:
    case Dtype::NVFP4:
    case Dtype::Q1_0:
    case Dtype::Q2_0:
      return std::nullopt;
  }
  return std::nullopt;
}

Dtype most_common(const Model& model) {
  std::map<Dtype, int64_t> weights;
  for (const LinearMap* map : linear_maps(model))
    weights[map->weight.dtype] += map->weight.rows * map->weight.cols;
  return std::max_element(weights.begin(), weights.end(),
                          [](auto& a, auto& b) { return a.second < b.second; })
      ->first;
}

SharedBytes floats(const std::vector<float>& values) {
  auto copy = std::make_shared<const std::vector<float>>(values);
  return {copy, std::as_bytes(std::span(*copy))};
}

auto writer(const SharedBytes& data) {
  return
      [data](const std::function<void(std::span<const std::byte>)>& write) { write(data.bytes); };
}

}  // namespace

Output output_of(const Model& source, const Model& cut, const Receipt& receipt) {
  Output out;
  for (const auto& [key, value] : source.file->metadata)
    if (!key.starts_with("microtome.") && !key.starts_with("split.") &&
        key != "general.file_type" && key != "general.quantization_version")
      out.metadata.emplace_back(key, value);
  auto set = [&](const char* key, auto value) {
    out.metadata.emplace_back(key, MetaValue{std::move(value)});
  };
  if (auto type = file_type(most_common(cut))) set("general.file_type", *type);
  set("general.quantization_version", uint32_t{2});
  set("microtome.version", receipt.version);
  set("microtome.source.sha256", receipt.source_sha256);
  set("microtome.goal", receipt.goal);
  if (!receipt.aimed_on.empty()) set("microtome.plan.aimed_on", receipt.aimed_on);
  set("microtome.plan.sha256", receipt.plan_sha256);
  set("microtome.calibration", receipt.calibration);
  set("microtome.calibration.sha256", receipt.calibration_sha256);
  set("microtome.kl.predicted", receipt.predicted_kl);
  if (receipt.proved) {
    set("microtome.proof", receipt.proof);
    set("microtome.proof.sha256", receipt.proof_sha256);
    set("microtome.kl.measured", receipt.measured_kl);
    if (receipt.intervals_hold) {
      set("microtome.kl.measured_low", receipt.measured_kl_low);
      set("microtome.kl.measured_high", receipt.measured_kl_high);
    }
    set("microtome.same_top.measured", receipt.measured_same_top);
  }
  if (receipt.feedback != Feedback::none)
    set("microtome.feedback",
        std::string(receipt.feedback == Feedback::sequential ? "sequential" : "independent"));
  if (receipt.biases) set("microtome.biases", std::string("corrected"));
  if (receipt.refine_steps > 0) {
    set("microtome.refine.steps", receipt.refine_steps);
    // As long as each other: the file's size is known before it is refined.
    set("microtome.refine.by", std::string(receipt.refined_by_layer ? "layer" : "model"));
    set("microtome.refine.kl_first", receipt.refine_first_kl);
    set("microtome.refine.kl_last", receipt.refine_last_kl);
  }

  std::map<std::string, const LinearMap*> maps;
  for (const LinearMap* map : linear_maps(cut)) maps[map->name] = map;
  // Norms that were refined and biases that were set; the others keep the source's bytes.
  std::map<std::string, SharedBytes> changed;
  const auto before = norms(source), after = norms(cut);
  for (size_t i = 0; i < after.size(); ++i)
    if (*after[i].gain != *before[i].gain) changed[after[i].name] = floats(*after[i].gain);
  for (const LinearMap* map : linear_maps(source))
    if (const auto it = maps.find(map->name); it != maps.end() && it->second->bias != map->bias)
      changed[bias_name(*map)] = floats(it->second->bias);
  for (const Tensor& t : source.file->tensors) {
    auto it = maps.find(t.name);
    if (source.head && !cut.head && t.name == source.head->name) continue;
    TensorSource s{.name = t.name, .shape = t.shape, .dtype = t.dtype, .produce = {}};
    SharedBytes data = t.data;
    if (it != maps.end()) {
      s.dtype = it->second->weight.dtype;
      data = it->second->weight.data;
    }
    if (const auto now = changed.find(t.name); now != changed.end()) {
      s.dtype = Dtype::F32;
      data = now->second;
    }
    s.produce = writer(data);
    out.tensors.push_back(std::move(s));
    if (it != maps.end())
      if (const auto bias = changed.find(bias_name(*it->second));
          bias != changed.end() && !source.file->find_tensor(bias->first))
        out.tensors.push_back({.name = bias->first,
                               .shape = {it->second->weight.rows},
                               .dtype = Dtype::F32,
                               .produce = writer(bias->second)});
  }
  return out;
}

}  // namespace mt
