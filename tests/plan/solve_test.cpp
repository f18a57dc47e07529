#include "plan/solve.h"

#include <gtest/gtest.h>

#include <cmath>
#include <ctime>
#include <limits>

#include "base/error.h"
#include "plan/problems_helper.h"

namespace mt {
namespace {

using plan_test::add_tied_alternative;
using plan_test::every_choice;
using plan_test::layered_problem;
using plan_test::random_problem;

const SolveSettings exact{.gap = 0, .max_nodes = 1 << 20, .max_seconds = 60, .hint = ""};

std::pair<int64_t, int64_t> byte_range(const Problem& problem) {
  int64_t low = INT64_MAX, high = 0;
  every_choice(problem, [&](const std::vector<int>&, int64_t bytes, double) {
    low = std::min(low, bytes);
    high = std::max(high, bytes);
  });
  return {low, high};
}

// What the solution says of itself is what its options sum to.
void expect_consistent(const Problem& problem, const Solution& s) {
  int64_t bytes = problem.fixed_bytes;
  double loss = 0;
  for (size_t e = 0; e < problem.alternatives.size(); ++e) {
    bytes += problem.alternatives[e].alternatives[s.alternative[e]].fixed_bytes;
    loss += problem.alternatives[e].alternatives[s.alternative[e]].fixed_loss;
  }
  for (size_t p = 0; p < problem.places.size(); ++p) {
    if (s.option[p] < 0) continue;
    bytes += problem.places[p].options[s.option[p]].bytes;
    loss += problem.places[p].options[s.option[p]].loss;
  }
  EXPECT_EQ(bytes, s.bytes);
  EXPECT_DOUBLE_EQ(loss, s.loss);
}

TEST(Solve, LeastLossEqualsBruteForce) {
  std::mt19937 rng(1);
  for (int t = 0; t < 150; ++t) {
    Problem problem = random_problem(rng, 2 + int(rng() % 4), 2 + int(rng() % 5));
    if (t % 3 == 0) add_tied_alternative(rng, problem);
    const auto [low, high] = byte_range(problem);
    const int64_t budget = low + int64_t(rng() % uint64_t(high - low + 1));
    double best = std::numeric_limits<double>::infinity();
    every_choice(problem, [&](const std::vector<int>&, int64_t bytes, double loss) {
      if (bytes <= budget) best = std::min(best, loss);
    });
    const Solution s = minimise_loss(problem, budget, exact);
    expect_consistent(problem, s);
    EXPECT_LE(s.bytes, budget);
    EXPECT_NEAR(s.loss, best, 1e-9 * std::abs(best)) << "problem " << t;
    EXPECT_LE(s.gap, 1e-6);
  }
}

TEST(Solve, FewestBytesEqualsBruteForce) {
  std::mt19937 rng(2);
  for (int t = 0; t < 150; ++t) {
    Problem problem = random_problem(rng, 2 + int(rng() % 4), 2 + int(rng() % 5));
    if (t % 3 == 0) add_tied_alternative(rng, problem);
    double low = std::numeric_limits<double>::infinity(), high = 0;
    every_choice(problem, [&](const std::vector<int>&, int64_t, double loss) {
      low = std::min(low, loss);
      high = std::max(high, loss);
    });
    const double bound = low * std::pow(high / low, double(rng() % 1000) / 1000);
    int64_t best = INT64_MAX;
    every_choice(problem, [&](const std::vector<int>&, int64_t bytes, double loss) {
      if (loss <= bound) best = std::min(best, bytes);
    });
    double least = std::numeric_limits<double>::infinity();
    every_choice(problem, [&](const std::vector<int>&, int64_t bytes, double loss) {
      if (bytes == best) least = std::min(least, loss);
    });
    const Solution s = minimise_bytes(problem, bound, exact);
    expect_consistent(problem, s);
    EXPECT_LE(s.loss, bound * (1 + 1e-11));
    EXPECT_EQ(s.bytes, best) << "problem " << t;
    EXPECT_NEAR(s.loss, least, 1e-9 * least) << "of that size the least loss";
  }
}

TEST(Solve, GroupsTakeOneFormat) {
  std::mt19937 rng(3);
  for (int t = 0; t < 40; ++t) {
    Problem problem = random_problem(rng, 5, 5);
    problem.places[0].group = problem.places[3].group = 7;
    const auto [low, high] = byte_range(problem);
    const int64_t budget = low + int64_t(rng() % uint64_t(high - low + 1));
    double best = std::numeric_limits<double>::infinity();
    every_choice(problem, [&](const std::vector<int>& at, int64_t bytes, double loss) {
      if (bytes <= budget && at[0] == at[3]) best = std::min(best, loss);
    });
    const Solution s = minimise_loss(problem, budget, exact);
    EXPECT_EQ(s.option[0], s.option[3]);
    EXPECT_NEAR(s.loss, best, 1e-9 * best);
  }
  Problem apart;
  apart.places = {{"a", {{Dtype::Q4_0, false, 18, 1}}, 0}, {"b", {{Dtype::Q8_0, false, 34, 1}}, 0}};
  EXPECT_THROW(minimise_loss(apart, 100), Error);
}

TEST(Solve, OneByteDecides) {
  // In a file of 10 GB: scaled floats must not round the byte away.
  Problem problem;
  const int64_t big = int64_t{1} << 30;
  for (int p = 0; p < 6; ++p)
    problem.places.push_back({"p" + std::to_string(p),
                              {{Dtype::Q4_0, false, big + p, 2.0 + p * 0.01},
                               {Dtype::Q8_0, false, 2 * big + 3 * p + 1, 1.0},
                               {Dtype::F16, false, 3 * big + 7 * p, 0.1}},
                              -1});
  for (const int64_t extra : {0, 5, 17, 18, 19, 30}) {
    const int64_t budget = 10 * big + extra;
    double best = std::numeric_limits<double>::infinity();
    every_choice(problem, [&](const std::vector<int>&, int64_t bytes, double loss) {
      if (bytes <= budget) best = std::min(best, loss);
    });
    const Solution s = minimise_loss(problem, budget, exact);
    EXPECT_LE(s.bytes, budget);
    EXPECT_NEAR(s.loss, best, 1e-12) << extra << " gap " << s.gap << " used " << s.bytes - 10 * big;
  }
}

TEST(Solve, SameProblemSameAnswer) {
  const Problem problem = layered_problem(11, 12);
  const Solution a = minimise_loss(problem, 300'000'000), b = minimise_loss(problem, 300'000'000);
  EXPECT_EQ(a.option, b.option);
  // Of two options alike in bytes and loss the kept one stands, then the lower format number.
  Problem ties;
  ties.places = {
      {"a",
       {{Dtype::Q4_K, false, 18, 1}, {Dtype::Q4_0, false, 18, 1}, {Dtype::IQ4_NL, true, 18, 1}},
       -1}};
  EXPECT_EQ(minimise_loss(ties, 18).option[0], 2);
  ties.places[0].options.pop_back();
  EXPECT_EQ(minimise_loss(ties, 18).option[0], 1);
}

TEST(Solve, LayeredModelsSolveInSeconds) {
#ifdef __SANITIZE_ADDRESS__  // several times slower
  constexpr int kLayers = 8;
#else
  constexpr int kLayers = 28;
#endif
  for (const uint32_t seed : {3u, 4u}) {
    Problem problem = layered_problem(seed, kLayers);
    std::mt19937 rng(seed);
    add_tied_alternative(rng, problem);
    for (const int64_t budget : {600'000'000, 900'000'000, 1'300'000'000}) {
      const std::clock_t start = std::clock();  // of this process: others do not count
      const Solution s = minimise_loss(problem, budget);
      const double took = double(std::clock() - start) / CLOCKS_PER_SEC;
      expect_consistent(problem, s);
      EXPECT_LE(s.bytes, budget);
      EXPECT_LE(s.gap, 1e-4);
      EXPECT_LT(took, 20) << "budget " << budget;
      const Solution b = minimise_bytes(problem, s.loss);
      EXPECT_LE(b.bytes, int64_t(double(budget) * (1 + 2e-5)));
      EXPECT_LE(b.loss, s.loss * (1 + 1e-11));
    }
  }
}

TEST(Solve, FrontierRises) {
  Problem problem = layered_problem(5, 6);
  const auto points = frontier(problem, 30);
  ASSERT_GE(points.size(), 20u);
  for (size_t i = 1; i < points.size(); ++i) {
    EXPECT_GT(points[i].bytes, points[i - 1].bytes);
    EXPECT_LT(points[i].loss, points[i - 1].loss);
  }
  int64_t low = problem.fixed_bytes;
  double best = 0;
  for (const Place& place : problem.places) {
    int64_t least = INT64_MAX;
    double loss = std::numeric_limits<double>::infinity();
    for (const Option& o : place.options) {
      least = std::min(least, o.bytes);
      loss = std::min(loss, o.loss);
    }
    low += least;
    best += loss;
  }
  EXPECT_EQ(points.front().bytes, low);
  EXPECT_NEAR(points.back().loss, best, 1e-12);
}

TEST(Solve, FrontierIsEvenInTheLogarithmAndEndsWhereItIsTold) {
  const Problem problem = layered_problem(30, 6);
  const auto whole = frontier(problem, 9);
  ASSERT_EQ(whole.size(), 9u);
  const int64_t low = whole.front().bytes, high = whole.back().bytes;
  for (size_t i = 0; i < whole.size(); ++i)
    EXPECT_NEAR(
        std::log(double(whole[i].bytes) / double(low)) / std::log(double(high) / double(low)),
        double(i) / 8, 0.02)
        << i;
  const int64_t most = (low + high) / 2;
  const auto part = frontier(problem, 9, {}, most);
  EXPECT_EQ(part.front().bytes, low);
  EXPECT_LE(part.back().bytes, most);
  EXPECT_GT(part.back().bytes, most - most / 50);
  EXPECT_EQ(frontier(problem, 9, {}, low / 2).size(), 1u) << "the smallest there is";
}

TEST(Solve, SaysWhatIsReachable) {
  std::mt19937 rng(6);
  Problem problem = random_problem(rng, 4, 4);
  const auto [low, high] = byte_range(problem);
  try {
    minimise_loss(problem, low - 1, {.hint = "widen --types"});
    FAIL() << "nothing fits, yet something came";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(std::to_string(low)), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("widen --types"), std::string::npos) << e.what();
  }
  EXPECT_EQ(minimise_loss(problem, low).bytes, low);
  EXPECT_THROW(minimise_bytes(problem, 0), Error);
  EXPECT_THROW(minimise_loss(problem, INT64_MIN), Error);
  problem.places[2].options[1].loss = std::nan("");
  EXPECT_THROW(minimise_loss(problem, high), Error);
  problem.places[2].options.clear();
  EXPECT_THROW(minimise_loss(problem, high), Error);
}

TEST(Solve, UniformFallsBack) {
  Problem problem;
  problem.places = {{"a", {{Dtype::Q4_K, false, 144, 1}, {Dtype::Q5_0, false, 176, 0.5}}, -1},
                    {"b", {{Dtype::Q8_0, false, 340, 0}, {Dtype::Q5_0, false, 220, 0.5}}, -1},
                    {"c", {{Dtype::F16, true, 640, 0}, {Dtype::Q8_0, false, 340, 0.1}}, -1},
                    {"d", {{Dtype::Q4_K, true, 144, 0}, {Dtype::Q4_K, false, 144, 1}}, -1}};
  const Solution s = uniform(problem, Dtype::Q4_K);
  EXPECT_EQ(s.option, (std::vector<int>{0, 1, 1, 0}));
  ASSERT_EQ(s.notes.size(), 2u);
  EXPECT_NE(s.notes[0].find("b: Q5_0 in place of Q4_K"), std::string::npos) << s.notes[0];
  EXPECT_EQ(s.bytes, 144 + 220 + 340 + 144);
  EXPECT_THROW(uniform(problem, Dtype::Q1_0), Error);
}

TEST(Solve, DecisionsCarryTheirNeighbours) {
  Problem problem;
  problem.fixed_bytes = 1000;
  problem.places = {{"a",
                     {{Dtype::Q8_0, false, 340, 0.1},
                      {Dtype::Q4_0, false, 180, 0.9},
                      {Dtype::Q5_1, false, 240, 1.5},  // beaten by Q4_0
                      {Dtype::Q6_K, false, 260, 0.3}},
                     -1}};
  EXPECT_EQ(own_curve(problem.places[0]), (std::vector<int>{1, 3, 0}));
  const Plan plan = to_plan(problem, minimise_loss(problem, 1300));
  ASSERT_EQ(plan.decisions.size(), 1u);
  EXPECT_EQ(plan.decisions[0].chosen.dtype, Dtype::Q6_K);
  ASSERT_TRUE(plan.decisions[0].cheaper && plan.decisions[0].dearer);
  EXPECT_EQ(plan.decisions[0].cheaper->dtype, Dtype::Q4_0);
  EXPECT_EQ(plan.decisions[0].dearer->dtype, Dtype::Q8_0);
  EXPECT_EQ(plan.predicted_bytes, 1260);
  const Plan small = to_plan(problem, minimise_loss(problem, 1200));
  EXPECT_FALSE(small.decisions[0].cheaper);
}

}  // namespace
}  // namespace mt
