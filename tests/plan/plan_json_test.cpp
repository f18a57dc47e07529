#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "base/error.h"
#include "flow/plan.h"
#include "plan/problems_helper.h"
#include "plan/solve.h"

namespace mt {
namespace {

bool same(const Option& a, const Option& b) {
  return a.dtype == b.dtype && a.keep == b.keep && a.bytes == b.bytes && a.loss == b.loss;
}

bool same(const std::optional<Option>& a, const std::optional<Option>& b) {
  return a.has_value() == b.has_value() && (!a || same(*a, *b));
}

Plan sample() {
  Problem problem = plan_test::layered_problem(4, 2);
  Plan plan = to_plan(problem, minimise_loss(problem, 500'000'000));
  plan.model_sha256 = std::string(64, 'a');
  plan.model_name = "Modèle \"quoted\" \\ \n 模型";
  plan.goal = "--size 500000000";
  plan.head = HeadPlan::tied;
  plan.tied_source = "output.weight";
  plan.note = "one\ntwo";
  plan.decisions[0].chosen.keep = true;
  plan.decisions[1].chosen.loss = 0.1 + 0.2;
  plan.decisions[2].chosen.loss = 5e-324;
  return plan;
}

TEST(PlanJson, RoundTripsExactly) {
  const Plan plan = sample();
  const std::string text = to_json(plan);
  const Plan back = plan_from_json(text, "p.json");
  EXPECT_EQ(back.model_sha256, plan.model_sha256);
  EXPECT_EQ(back.model_name, plan.model_name);
  EXPECT_EQ(back.goal, plan.goal);
  EXPECT_EQ(back.head, plan.head);
  EXPECT_EQ(back.tied_source, plan.tied_source);
  EXPECT_EQ(back.fixed_bytes, plan.fixed_bytes);
  EXPECT_EQ(back.predicted_bytes, plan.predicted_bytes);
  EXPECT_EQ(back.predicted_kl, plan.predicted_kl);
  EXPECT_EQ(back.optimality_gap, plan.optimality_gap);
  EXPECT_EQ(back.note, plan.note);
  ASSERT_EQ(back.decisions.size(), plan.decisions.size());
  for (size_t i = 0; i < plan.decisions.size(); ++i) {
    EXPECT_EQ(back.decisions[i].place, plan.decisions[i].place);
    EXPECT_TRUE(same(back.decisions[i].chosen, plan.decisions[i].chosen)) << i;
    EXPECT_TRUE(same(back.decisions[i].cheaper, plan.decisions[i].cheaper)) << i;
    EXPECT_TRUE(same(back.decisions[i].dearer, plan.decisions[i].dearer)) << i;
  }
  EXPECT_EQ(to_json(back), text);
  EXPECT_EQ(to_json(plan_from_json(to_json(Plan{}), "empty")), to_json(Plan{}));
}

TEST(PlanJson, ReadsAHandWrittenPlan) {
  const Plan plan = plan_from_json(
      R"({"places": [{"place": "blk.0.attn_q.weight", "dtype": "q4_0"},
                     {"place": "token_embd.weight", "dtype": "Q8_0", "keep": true}]})",
      "hand.json");
  ASSERT_EQ(plan.decisions.size(), 2u);
  EXPECT_EQ(plan.decisions[0].chosen.dtype, Dtype::Q4_0);
  EXPECT_FALSE(plan.decisions[0].chosen.keep);
  EXPECT_TRUE(plan.decisions[1].chosen.keep);
  EXPECT_EQ(plan.head, HeadPlan::as_source);
}

void expect_error(const std::string& text, const std::vector<std::string>& words) {
  try {
    plan_from_json(text, "bad.json");
    ADD_FAILURE() << "was read: " << text.substr(0, 100);
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()).find("bad.json"), 0u) << e.what();
    for (const auto& word : words)
      EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
  }
}

TEST(PlanJson, NamesWhatIsWrong) {
  expect_error("", {"not JSON"});
  expect_error("[]", {"expected an object", "array of 0"});
  expect_error(R"({"goal": "x"})", {"places", "missing"});
  expect_error(R"({"places": {}})", {"places", "expected an array"});
  expect_error(R"({"places": [7]})", {"places[0]", "object", "7"});
  expect_error(R"({"places": [{"dtype": "Q4_0"}]})", {"places[0].place", "missing"});
  expect_error(R"({"places": [{"place": "a"}]})", {"places[0].dtype", "missing"});
  expect_error(R"({"places": [{"place": "", "dtype": "Q4_0"}]})", {"places[0].place", "empty"});
  expect_error(R"({"places": [{"place": "a", "dtype": "Q4_7"}]})", {"places[0].dtype", "Q4_7"});
  expect_error(R"({"places": [{"place": "a", "dtype": 4}]})", {"dtype", "string", "4"});
  expect_error(R"({"places": [{"place": "a", "dtype": "F16"}, {"place": "a", "dtype": "F16"}]})",
               {"places[1].place", "'a'", "twice"});
  expect_error(R"({"places": [{"place": "a", "dtpye": "F16"}]})", {"dtpye", "known are", "dtype"});
  expect_error(R"({"places": [{"place": "a", "dtype": "F16", "bytes": -1}]})", {"bytes", "-1"});
  expect_error(R"({"places": [{"place": "a", "dtype": "F16", "bytes": 18446744073709551615}]})",
               {"bytes", "18446744073709551615"});
  expect_error(R"({"places": [{"place": "a", "dtype": "F16", "bytes": 1.5}]})", {"bytes", "1.5"});
  expect_error(R"({"places": [{"place": "a", "dtype": "F16", "loss": "low"}]})", {"loss", "low"});
  expect_error(R"({"places": [{"place": "a", "dtype": "F16", "loss": 1e999}]})", {"not JSON"});
  expect_error(R"({"places": [{"place": "a", "dtype": "F16", "dearer": {"bytes": 1}}]})",
               {"places[0].dearer.dtype", "missing"});
  expect_error(R"({"places": [], "head": "both"})", {"head", "both", "tied"});
  expect_error(R"({"places": [], "head": "tied"})", {"tied_source", "missing"});
  expect_error(R"({"places": [], "microtome_plan": 2})", {"version 2", "reads 1"});
  expect_error(R"({"places": [], "goal": "a", "goal": "b"})", {"'goal'", "twice"});
  expect_error(std::string(1'000'000, '['), {"levels"});
  std::string deep = R"({"places": )";
  for (int i = 0; i < 40; ++i) deep += R"({"a": )";
  expect_error(deep, {"levels"});
}

TEST(PlanJson, EveryTruncationIsAnError) {
  Plan plan = sample();
  plan.decisions.resize(3);
  const std::string text = to_json(plan);
  for (size_t n = 0; n + 2 < text.size(); ++n)
    EXPECT_THROW(plan_from_json(text.substr(0, n), "cut"), Error) << n;
}

TEST(PlanJson, RefusesToWriteWhatDoesNotRead) {
  Plan plan = sample();
  plan.decisions[0].chosen.loss = std::nan("");
  EXPECT_THROW(to_json(plan), Error);
  plan = sample();
  plan.decisions[0].place = "bad \xff name";
  EXPECT_THROW(to_json(plan), Error);
}

}  // namespace
}  // namespace mt
