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

TEST(BatchCost, LiesOnALineThroughWhatWasMeasured) {
  BatchCost cost;
  EXPECT_EQ(cost.of(1), 0);
  EXPECT_GT(cost.age(1), 1000);
  cost.add(1, 2.0);
  EXPECT_EQ(cost.of(1), 2.0);
  EXPECT_GT(cost.of(2), 2.0) << "assumed";
  EXPECT_LT(cost.of(8), 16.0);
  cost.add(4, 5.0);
  EXPECT_DOUBLE_EQ(cost.of(3), 4.0);
  EXPECT_DOUBLE_EQ(cost.of(6), 7.0);
  // One batch that something else on the machine held up decides nothing.
  for (double s : {5.1, 4.9, 50.0, 5.0}) cost.add(4, s);
  EXPECT_NEAR(cost.of(4), 5.0, 0.1);
  EXPECT_EQ(cost.age(1), 5);
  cost.forget_drafts(1);
  EXPECT_LT(cost.of(4), 5.0);
  EXPECT_EQ(cost.of(1), 2.0);
}

}  // namespace
}  // namespace mt
