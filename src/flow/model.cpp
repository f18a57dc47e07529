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

}  // namespace

std::vector<LinearMap*> linear_maps(Model& model) {
  return collect<Model, LinearMap>(model);
}
std::vector<const LinearMap*> linear_maps(const Model& model) {
  return collect<const Model, const LinearMap>(model);
}

}  // namespace mt
