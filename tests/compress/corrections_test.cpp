#include "compress/corrections.h"

#include <gtest/gtest.h>

#include "measure/place_loss.h"
#include "plan/ask.h"
#include "run/tiny.h"
#include "support/folder.h"

namespace mt {
namespace {

TEST(Corrections, TheTextFactorIsTheLossOnAllTextOverThatOnTheFirstWindows) {
  ThreadPool pool{1};
  const Runtime rt{select_kernels(), pool};
  test::TemporaryFolder folder;
  const Model model = open_tiny("tiny_llama");
  const Candidates candidates = find_candidates(model, default_types(), nullptr);
  std::vector<std::vector<double>> losses;
  for (const Candidate& c : candidates.all) losses.emplace_back(c.dtypes.size(), 1e-3);
  const PlaceOptions places = sampled_places(candidates, losses, 6);
  const auto ids = read_golden<int32_t>("tiny_llama.ids.i32");
  Windows windows;
  for (int64_t from : {0, 3, 6, 9})
    windows.push_back({ids.begin() + from, ids.begin() + 10 + 2 * from});

  Model cut = model;
  for (const auto& [i, o] : places) {
    const Candidate& c = candidates.all[i];
    if (info(c.dtypes[o]).bits_per_weight() < 3) continue;  // about four bits, or about two
    for (LinearMap* map : linear_maps(cut))
      if (map->name == c.tensor) map->weight = encode_weight(rt, c.source, c.dtypes[o], c.weights);
  }
  const double all = PlaceLoss(rt, model, windows).measure(cut);
  const double few = PlaceLoss(rt, model, {windows[0], windows[1]}).measure(cut);
  ASSERT_GT(std::abs(all / few - 1), 0.02) << "the windows are alike: nothing is tested";
  const auto path = folder / "kept.db";
  for (int round = 0; round < 2; ++round) {  // the second from what was kept
    auto db = Measurements::open(path);
    db->select_run("model", "corpus", "settings");
    EXPECT_NEAR(text_factor(rt, model, windows, candidates, losses, places, *db), all / few,
                1e-4 * all / few);
  }
  auto db = Measurements::open(path);
  db->select_run("model", "corpus", "settings");
  EXPECT_EQ(db->rows("sampled_kl").size(), windows.size());
  EXPECT_EQ(text_factor(rt, model, {windows[0], windows[1]}, candidates, losses, places, *db), 1);
}

TEST(Corrections, PlacesOfARoleAreMeasuredTogether) {
  ThreadPool pool{1};
  const Runtime rt{select_kernels(), pool};
  test::TemporaryFolder folder;
  const Model model = open_tiny("tiny_llama");
  const auto ids = read_golden<int32_t>("tiny_llama.ids.i32");
  const Windows windows = {{ids.begin(), ids.begin() + 20}, {ids.begin() + 5, ids.begin() + 15}};
  Plan plan;
  Model whole = model, downs = model;
  for (LinearMap* map : linear_maps(whole)) {
    const bool down = map->name.ends_with("ffn_down.weight");
    if (!down && !map->name.ends_with("attn_q.weight")) continue;
    const RowWeights weights = row_weights(nullptr, map->name, Role::map);
    const Weight rounded = encode_weight(rt, map->weight, Dtype::Q4_0, weights);
    Decision& d = plan.decisions.emplace_back();
    d.place = map->name;
    d.chosen.dtype = Dtype::Q4_0;
    map->weight = rounded;
    for (LinearMap* other : linear_maps(downs))
      if (down && other->name == map->name) other->weight = rounded;
  }
  const auto path = folder / "kept.db";
  int made = 0;
  auto cut = [&] {
    ++made;
    return whole;
  };
  for (int round = 0; round < 2; ++round) {  // the second from what was kept
    auto db = Measurements::open(path);
    db->select_run("model", "corpus", "settings");
    PlaceLoss loss(rt, model, windows);
    const double of_downs = loss.measure(downs), of_all = loss.measure(whole);
    ASSERT_GT(of_all, 1.1 * of_downs);
    const auto roles = role_losses(rt, model, plan, cut, {"ffn_down", "attn_k"}, windows, *db);
    EXPECT_NEAR(roles.at("ffn_down"), of_downs, 1e-4 * of_downs);
    EXPECT_NEAR(roles.at("attn_k"), 0, 1e-7);
    EXPECT_NEAR(whole_loss(rt, model, plan, cut, windows, *db), of_all, 1e-4 * of_all);
    EXPECT_EQ(made, 2);
  }
}

}  // namespace
}  // namespace mt
