#include "flow/model.h"

namespace mt {
namespace {

template <class M, class Map>
std::vector<Map*> collect(M& model) {
  std::vector<Map*> maps{&model.embedding};
  for (auto& step : model.steps)
    for (auto& site : step.sites) {
      if (auto* a = std::get_if<Attention>(&site.what))
        for (auto* map : {&a->q, &a->k, &a->v, &a->o}) maps.push_back(map);
      if (auto* f = std::get_if<Mlp>(&site.what))
        for (auto* map : {&f->gate, &f->up, &f->down}) maps.push_back(map);
    }
  if (model.head) maps.push_back(&*model.head);
  return maps;
}

template <class M, class Gain>
std::vector<NamedNorm<Gain>> collect_norms(M& model) {
  std::vector<NamedNorm<Gain>> found;
  auto add = [&](const std::string& name, Gain& gain) {
    if (!gain.empty()) found.push_back({name, &gain});
  };
  for (auto& step : model.steps)
    for (auto& site : step.sites) {
      add(site.norm_name, site.norm);
      if (auto* a = std::get_if<Attention>(&site.what)) {
        add(a->q_norm_name, a->q_norm);
        add(a->k_norm_name, a->k_norm);
      }
      add(site.post_norm_name, site.post_norm);
    }
  add(kFinalNorm, model.final_norm);
  return found;
}

}  // namespace

std::vector<LinearMap*> linear_maps(Model& model) {
  return collect<Model, LinearMap>(model);
}
std::vector<const LinearMap*> linear_maps(const Model& model) {
  return collect<const Model, const LinearMap>(model);
}

std::vector<NamedNorm<std::vector<float>>> norms(Model& model) {
  return collect_norms<Model, std::vector<float>>(model);
}
std::vector<NamedNorm<const std::vector<float>>> norms(const Model& model) {
  return collect_norms<const Model, const std::vector<float>>(model);
}

}  // namespace mt
