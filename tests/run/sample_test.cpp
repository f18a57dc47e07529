#include "run/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>

#include "base/error.h"

namespace mt {
namespace {

std::vector<float> random_logits(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> v(n);
  for (float& x : v) x = normal(random);
  return v;
}

// The definitions, one after the other, over sets of ids.
std::map<int32_t, double> by_definition(std::vector<float> logits, std::set<int32_t> recent,
                                        const SampleOptions& o) {
  std::map<int32_t, double> left;
  for (size_t i = 0; i < logits.size(); ++i) {
    double x = logits[i];
    auto id = static_cast<int32_t>(i);
    if (recent.contains(id)) x = x > 0 ? x / o.repeat_penalty : x * o.repeat_penalty;
    left[id] = x;
  }
  auto ranked = [&] {
    std::vector<std::pair<double, int32_t>> list;
    for (auto [id, x] : left) list.emplace_back(-x, id);
    std::sort(list.begin(), list.end());
    return list;
  };
  auto softmax = [&](double temperature) {
    double sum = 0;
    std::map<int32_t, double> p;
    for (auto [id, x] : left) sum += p[id] = std::exp(x / temperature);
    for (auto& [id, x] : p) x /= sum;
    return p;
  };
  if (o.top_k > 0) {
    auto list = ranked();
    for (size_t i = size_t(o.top_k); i < list.size(); ++i) left.erase(list[i].second);
  }
  if (o.top_p < 1) {
    auto p = softmax(1);
    double before = 0;
    for (auto [x, id] : ranked()) {
      if (before >= o.top_p) left.erase(id);
      before += p[id];
    }
  }
  if (o.min_p > 0) {
    auto p = softmax(1);
    double most = 0;
    for (auto [id, x] : p) most = std::max(most, x);
    for (auto [id, x] : p)
      if (x < o.min_p * most) left.erase(id);
  }
  return softmax(o.temperature);
}

void expect_definition(const SampleOptions& options) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    auto logits = random_logits(50, seed);
    std::vector<int32_t> recent{3, 7, 7, 12, 49};
    auto expected = by_definition(logits, {3, 7, 12, 49}, options);
    auto got = candidates(logits, recent, options);
    ASSERT_EQ(got.size(), expected.size()) << seed;
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_TRUE(expected.contains(got[i].id));
      EXPECT_NEAR(got[i].value, expected[got[i].id], 1e-12);
      if (i > 0) {
        EXPECT_GE(got[i - 1].value, got[i].value);
      }
    }
  }
}

SampleOptions all_off() {
  SampleOptions o;
  o.temperature = 1;
  o.top_k = 0;
  o.top_p = 1;
  o.min_p = 0;
  return o;
}

TEST(Candidates, EachStepIsItsDefinition) {
  SampleOptions o = all_off();
  expect_definition(o);
  o.temperature = 0.6;
  expect_definition(o);
  o = all_off(), o.top_k = 7;
  expect_definition(o);
  o = all_off(), o.top_p = 0.8;
  expect_definition(o);
  o = all_off(), o.min_p = 0.1;
  expect_definition(o);
  o = all_off(), o.repeat_penalty = 1.5;
  expect_definition(o);
}

TEST(Candidates, StepsFollowOneAnotherInOrder) {
  SampleOptions o;
  o.temperature = 1.7;
  o.top_k = 20;
  o.top_p = 0.9;
  o.min_p = 0.05;
  o.repeat_penalty = 1.3;
  expect_definition(o);
}

TEST(Candidates, SomethingIsAlwaysLeft) {
  SampleOptions o = all_off();
  o.top_p = 0;
  o.min_p = 1;
  o.top_k = 1;
  EXPECT_EQ(candidates(random_logits(9, 1), {}, o).size(), 1u);
  std::vector<float> nothing(4, -INFINITY);
  EXPECT_FALSE(candidates(nothing, {}, SampleOptions()).empty());
  std::vector<float> odd{NAN, 1, NAN, 0};
  for (double t : {0.0, 1.0}) {
    o = all_off();
    o.temperature = t;
    EXPECT_EQ(candidates(odd, {}, o)[0].id, 1);
  }
}

TEST(Candidates, GreedyTakesTheLikeliestAndTheFirstOfEquals) {
  SampleOptions o;
  o.temperature = 0;
  std::vector<float> logits{1, 3, 3, 2};
  EXPECT_EQ(candidates(logits, {}, o)[0].id, 1);
  o.repeat_penalty = 2;
  std::vector<int32_t> recent{1};
  EXPECT_EQ(candidates(logits, recent, o)[0].id, 2);
}

TEST(Sampler, DrawsWithTheCandidatesProbabilities) {
  SampleOptions o = all_off();
  auto logits = random_logits(12, 3);
  auto list = candidates(logits, {}, o);
  Sampler sampler(o);
  constexpr int kDraws = 200000;
  std::map<int32_t, int> drawn;
  for (int i = 0; i < kDraws; ++i) ++drawn[sampler.draw(logits)];
  for (const Candidate& c : list) {
    double sigma = std::sqrt(kDraws * c.value * (1 - c.value));
    EXPECT_NEAR(drawn[c.id], kDraws * c.value, 5 * sigma + 1);
  }
}

TEST(Sampler, RefusesLogitsOfADamagedModel) {
  for (double t : {0.0, 1.0})
    for (float x : {NAN, INFINITY, -INFINITY}) {
      SampleOptions o;
      o.temperature = t;
      Sampler s(o);
      EXPECT_THROW(s.draw(std::vector<float>(5, x)), Error) << t << " " << x;
    }
}

TEST(Sampler, SeedDecides) {
  auto logits = random_logits(1000, 4);
  auto run = [&](uint64_t seed) {
    SampleOptions o = all_off();
    o.seed = seed;
    Sampler s(o);
    std::vector<int32_t> ids;
    for (int i = 0; i < 20; ++i) ids.push_back(s.draw(logits));
    return ids;
  };
  EXPECT_EQ(run(1), run(1));
  EXPECT_NE(run(1), run(2));
}

TEST(Sampler, PenaltySeesOnlyRecentTokens) {
  SampleOptions o;
  o.temperature = 0;
  o.repeat_penalty = 100;
  o.repeat_last = 2;
  Sampler s(o);
  std::vector<float> logits{3, 2, 1};
  EXPECT_EQ(s.draw(logits), 0);
  s.accept(0);
  EXPECT_EQ(s.draw(logits), 1);
  s.accept(1);
  EXPECT_EQ(s.draw(logits), 2);
  s.accept(2);  // 0 is forgotten
  EXPECT_EQ(s.draw(logits), 0);
}

}  // namespace
}  // namespace mt
