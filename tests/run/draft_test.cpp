#include "run/draft.h"

#include <gtest/gtest.h>

namespace mt {
namespace {

TEST(FindNgram, TakesTheLatestOfTheLongest) {
  //                                0  1  2  3  4  5  6  7  8  9 10 11
  const std::vector<int32_t> text{7, 1, 2, 3, 9, 2, 3, 8, 2, 3, 1, 2, 3};
  const NgramMatch m = find_ngram(text);
  EXPECT_EQ(m.length, 3);
  EXPECT_EQ(m.next, 4);
  EXPECT_EQ(continuation(text, m, 3), (std::vector<int32_t>{9, 2, 3}));
  const std::vector<int32_t> twice{5, 6, 1, 5, 6, 2, 4, 6};
  EXPECT_EQ(find_ngram(twice).length, 1);
  EXPECT_EQ(find_ngram(twice).next, 5) << "the later one";
  EXPECT_EQ(find_ngram(std::vector<int32_t>{1, 2, 3}).length, 0);
  EXPECT_EQ(find_ngram(std::vector<int32_t>{4}).length, 0);
  EXPECT_EQ(find_ngram({}).length, 0);
}

TEST(FindNgram, LengthsEndAtTheLongestThatCounts) {
  const std::vector<int32_t> same(100, 3);
  const NgramMatch m = find_ngram(same);
  EXPECT_EQ(m.length, kLongestMatch);
  EXPECT_EQ(m.next, 99);
}

TEST(Continuation, RunsIntoItself) {
  const std::vector<int32_t> text{8, 1, 2, 1, 2};
  const NgramMatch m = find_ngram(text);
  EXPECT_EQ(m.length, 2);
  EXPECT_EQ(continuation(text, m, 5), (std::vector<int32_t>{1, 2, 1, 2, 1}));
}

TEST(Acceptance, FollowsWhatTheTextShows) {
  Acceptance a;
  EXPECT_EQ(a.probability(0), 0);
  EXPECT_LT(a.probability(1), a.probability(8)) << "before the text has shown anything";
  for (int i = 0; i < 100; ++i) a.count(2, i % 4 == 0), a.count(12, true);
  EXPECT_NEAR(a.probability(2), 0.25, 0.1);
  EXPECT_GT(a.probability(16), 0.95);
  for (int i = 0; i < 60; ++i) a.count(12, false);
  EXPECT_LT(a.probability(12), 0.2) << "another part of the text";
}

TEST(Acceptance, LearnsFromAText) {
  // After 1 comes 2, after 7 8; what comes after 7 8 9 5 is new every time.
  std::vector<int32_t> text;
  for (int32_t i = 0; i < 40; ++i)
    for (int32_t id : {100 + i, 1, 2, 200 + i, 7, 8, 9, 5}) text.push_back(id);
  Acceptance before, a;
  a.learn(text);
  EXPECT_GT(a.probability(1), 0.9);
  EXPECT_LT(a.probability(4), 0.1);
  EXPECT_EQ(a.probability(8), before.probability(8)) << "never seen";
}

TEST(BatchCost, AssumesTheBestOfWhatWasNotMeasured) {
  BatchCost cost;
  EXPECT_EQ(cost.of(1), 0);
  EXPECT_GT(cost.age(1), 1000);
  cost.add(1, 2.0);
  EXPECT_EQ(cost.of(1), 2.0);
  EXPECT_DOUBLE_EQ(cost.of(2), 2.5);
  EXPECT_DOUBLE_EQ(cost.of(8), 5.5);
  cost.add(4, 5.0);
  EXPECT_DOUBLE_EQ(cost.of(3), 3.0);
  EXPECT_DOUBLE_EQ(cost.of(6), 6.0);
  cost.add(6, 5.2);
  EXPECT_DOUBLE_EQ(cost.of(5), 5.2) << "no more than a larger batch";
  // One batch that something else on the machine held up decides nothing.
  for (double s : {5.1, 4.9, 50.0, 5.0}) cost.add(4, s);
  EXPECT_NEAR(cost.of(4), 5.0, 0.1);
  EXPECT_EQ(cost.age(1), 6);
  cost.forget_drafts(1);
  EXPECT_LT(cost.of(4), 5.0);
  EXPECT_EQ(cost.of(1), 2.0);
}

}  // namespace
}  // namespace mt
