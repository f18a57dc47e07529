#include "cut/cut.h"

#include <map>
#include <set>

#include "base/error.h"
#include "base/progress.h"

namespace mt {

Model cut_model(const Runtime& rt, const Model& source, const Plan& plan,
                const WeightsOf& weights) {
  Model cut = source;
  const std::string& file = source.file->path;
  std::map<std::string, LinearMap*> maps;
  for (LinearMap* map : linear_maps(cut)) maps[map->name] = map;

  if (plan.head == HeadPlan::tied) {
    if (!cut.head)
      throw_error("the plan makes head and embedding one tensor, but {} has only one", file);
    if (plan.tied_source == cut.head->name)
      cut.embedding.weight = cut.head->weight;
    else if (plan.tied_source != cut.embedding.name)
      throw_error("the plan's tied_source is '{}': expected '{}' or '{}'", plan.tied_source,
                  cut.head->name, cut.embedding.name);
    maps.erase(cut.head->name);
    cut.head.reset();
  }

  std::set<std::string> decided;
  uint64_t total = 0;
  for (const Decision& d : plan.decisions) {
    auto it = maps.find(d.place);
    if (it == maps.end()) throw_error("the plan names '{}', which {} does not have", d.place, file);
    if (!decided.insert(d.place).second) throw_error("the plan decides '{}' twice", d.place);
    total += static_cast<uint64_t>(it->second->weight.rows * it->second->weight.cols);
  }
  for (const auto& [name, map] : maps)
    if (!decided.contains(name)) throw_error("the plan says nothing about '{}' of {}", name, file);

  Progress progress("cutting", total);
  for (const Decision& d : plan.decisions) {
    Weight& w = maps[d.place]->weight;
    if (!d.chosen.keep && d.chosen.dtype != w.dtype) {
      const DtypeInfo& format = info(d.chosen.dtype);
      if (!format.encodes || w.cols % format.block_length)
        throw_error("the plan asks for {} in '{}', whose rows of {} it cannot hold", format.name,
                    d.place, w.cols);
      w = encode_weight(rt, w, d.chosen.dtype, weights(d.place));
    }
    progress.advance(static_cast<uint64_t>(w.rows * w.cols));
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
    set("microtome.kl.measured_low", receipt.measured_kl_low);
    set("microtome.kl.measured_high", receipt.measured_kl_high);
    set("microtome.same_top.measured", receipt.measured_same_top);
  }
  if (receipt.refine_steps > 0) {
    set("microtome.refine.steps", receipt.refine_steps);
    set("microtome.refine.kl_first", receipt.refine_first_kl);
    set("microtome.refine.kl_last", receipt.refine_last_kl);
  }

  std::map<std::string, const LinearMap*> maps;
  for (const LinearMap* map : linear_maps(cut)) maps[map->name] = map;
  // Norms that were refined; the others keep the source's bytes.
  std::map<std::string, SharedBytes> changed;
  const auto before = norms(source), after = norms(cut);
  for (size_t i = 0; i < after.size(); ++i)
    if (*after[i].gain != *before[i].gain) changed[after[i].name] = floats(*after[i].gain);
  for (const Tensor& t : source.file->tensors) {
    auto it = maps.find(t.name);
    if (source.head && !cut.head && t.name == source.head->name) continue;
    TensorSource s{.name = t.name, .shape = t.shape, .dtype = t.dtype, .produce = {}};
    SharedBytes data = t.data;
    if (it != maps.end()) {
      s.dtype = it->second->weight.dtype;
      data = it->second->weight.data;
    }
    if (const auto norm = changed.find(t.name); norm != changed.end()) {
      s.dtype = Dtype::F32;
      data = norm->second;
    }
    s.produce = [data](const std::function<void(std::span<const std::byte>)>& write) {
      write(data.bytes);
    };
    out.tensors.push_back(std::move(s));
  }
  return out;
}

}  // namespace mt
