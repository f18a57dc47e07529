#include "compress/plan_search.h"

#include <gtest/gtest.h>

#include "measure/place_loss.h"
#include "plan/ask.h"
#include "run/tiny.h"
#include "support/folder.h"

namespace mt {
namespace {

TEST(PlanSearch, LowersTheMeasuredLossWithinTheBytesAndGoesOnFromWhatItKept) {
  ThreadPool pool{1};
  const Runtime rt{select_kernels(), pool};
  test::TemporaryFolder folder;
  int64_t better = 0;
  for (const std::string name : {"tiny_llama", "tiny_qwen2", "tiny_gemma3"}) {
    SCOPED_TRACE(name);
    SessionSettings settings;
    settings.model = std::string(MT_TEST_DATA) + "/" + name + ".gguf";
    settings.db = folder.path() / (name + ".db");
    settings.n_ctx = 40;
    settings.n_windows = 6;
    settings.n_proof_windows = 4;
    settings.n_measured = 2;
    settings.types = default_types();
    Goal goal;
    goal.bytes = int64_t(std::filesystem::file_size(settings.model)) / 5;
    goal.text = "a fifth";
    Session session(rt, settings);
    const Plan plan = session.plan(goal);
    const Searched none = search_plan(session, plan, *goal.bytes, 0);
    EXPECT_EQ(none.n_measured, 0);
    EXPECT_EQ(to_json(none.plan), to_json(plan));

    const Searched searched = search_plan(session, plan, *goal.bytes, 1);
    EXPECT_GT(searched.n_measured, 0);
    EXPECT_LE(searched.kl_after, searched.kl_before);
    better += searched.n_better;
    EXPECT_LE(searched.plan.predicted_bytes, *goal.bytes);
    PlaceLoss loss(rt, session.model(), session.calibration().windows);
    EXPECT_NEAR(loss.measure(session.cut(plan)), searched.kl_before, 1e-4 * searched.kl_before);
    const Model cut = session.cut(searched.plan);
    EXPECT_NEAR(loss.measure(cut), searched.kl_after, 1e-4 * searched.kl_after);
    session.write(folder / "cut.gguf", cut, searched.plan, std::nullopt);
    EXPECT_LE(int64_t(std::filesystem::file_size(folder / "cut.gguf")), *goal.bytes);

    // All that was measured is found again, and what follows is measured besides.
    Session later(rt, settings);
    const Searched again = search_plan(later, later.plan(goal), *goal.bytes, 0.05);
    EXPECT_GE(again.n_measured, searched.n_measured);
    EXPECT_EQ(again.n_kept, searched.n_measured);
    EXPECT_LE(again.kl_after, searched.kl_after);
  }
  EXPECT_GT(better, 0);
}

}  // namespace
}  // namespace mt
