#include "compress/places.h"

#include "model/arch/table.h"

namespace mt {
namespace {

RowWeights sum_of(std::vector<Expectation> expectations) {
  if (expectations.size() == 1) return expectations.front().weights;
  return [expectations = std::move(expectations)](int64_t row, std::span<float> w) {
    expectations.front().weights(row, w);
    std::vector<float> more(w.size());
    for (size_t e = 1; e < expectations.size(); ++e) {
      expectations[e].weights(row, more);
      for (size_t i = 0; i < w.size(); ++i) w[i] += more[i];
    }
  };
}

}  // namespace

Candidates find_candidates(const Model& model, std::span<const Dtype> types,
                           const Profile* profile) {
  Candidates c;
  auto add = [&](std::string key, const std::string& tensor, const Weight& source,
                 std::vector<Expectation> expectations) {
    Candidate x{.key = std::move(key),
                .tensor = tensor,
                .source = source,
                .expectations = std::move(expectations),
                .weights = {},
                .dtypes = {source.dtype}};
    x.weights = sum_of(x.expectations);
    for (Dtype d : types)
      if (d != source.dtype && info(d).encodes && source.cols % info(d).block_length == 0)
        x.dtypes.push_back(d);
    c.all.push_back(std::move(x));
    return c.all.size() - 1;
  };
  auto expect = [&](const LinearMap& map, Role role) {
    return Expectation{map.weight, row_weights(profile, map.name, role)};
  };

  for (const LinearMap* map : linear_maps(model))
    if (map != &model.embedding && (!model.head || map != &*model.head))
      add(map->name, map->name, map->weight, {expect(*map, Role::map)});

  const LinearMap& embedding = model.embedding;
  if (!model.head) {
    add(embedding.name, embedding.name, embedding.weight,
        {expect(embedding, Role::embedding_and_head)});
    return c;
  }
  const LinearMap& head = *model.head;
  Expectation as_embedding = expect(embedding, Role::embedding);
  Expectation as_head = expect(head, Role::head);
  size_t e = add(embedding.name, embedding.name, embedding.weight, {as_embedding});
  size_t h = add(head.name, head.name, head.weight, {as_head});
  const Architecture* arch = find_architecture(model.architecture);
  c.head_choices.push_back({"", {e, h}});
  if (!arch || !arch->tied_head_loads || embedding.weight.rows != head.weight.rows) return c;
  for (const LinearMap* source : {&head, &embedding}) {
    size_t both = add(embedding.name + " as " + source->name, embedding.name, source->weight,
                      {as_head, as_embedding});
    c.head_choices.push_back({source->name, {both}});
  }
  return c;
}

}  // namespace mt
