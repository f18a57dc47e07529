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

}  // namespace
}  // namespace mt
