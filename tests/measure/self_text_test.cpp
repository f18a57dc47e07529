#include "measure/self_text.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <utility>

#include "run/tiny.h"

namespace mt {
namespace {

using Text = std::vector<std::vector<int32_t>>;

TEST(SelfText, IsTheSameForAnyThreadsAndGrouping) {
  const SelfTextSettings settings{.seed = 5, .n_tokens = 40};
  for (const auto& name : kTinyModels) {
    SCOPED_TRACE(name);
    const Model model = open_tiny(name);
    const auto tokenizer = Tokenizer::open(*model.file);
    ThreadPool one(1), three(3);
    Runtime alone{select_kernels(), one}, team{select_kernels(), three};
    const Text text = sample_self_text(alone, model, *tokenizer, settings, 0, 6);
    ASSERT_EQ(text.size(), 6u);
    EXPECT_EQ(sample_self_text(team, model, *tokenizer, settings, 0, 6), text);
    const Text rest = sample_self_text(team, model, *tokenizer, settings, 4, 2);
    EXPECT_EQ(rest, Text(text.begin() + 4, text.end()));
    EXPECT_NE(sample_self_text(team, model, *tokenizer, {.seed = 6, .n_tokens = 40}, 0, 6), text);
    // A model that is sure of everything may write one text twice.
    EXPECT_GE(std::set(text.begin(), text.end()).size(), 4u);
  }
}

TEST(SelfText, StartsAsTheModelAsksAndHoldsNoControlTokens) {
  ThreadPool pool(1);
  Runtime rt{select_kernels(), pool};
  for (const auto& name : kTinyModels) {
    SCOPED_TRACE(name);
    const Model model = open_tiny(name);
    const auto tokenizer = Tokenizer::open(*model.file);
    const Text text = sample_self_text(rt, model, *tokenizer, {.seed = 1, .n_tokens = 100}, 0, 12);
    for (const auto& sequence : text) {
      ASSERT_EQ(sequence.size(), 100u);
      ASSERT_TRUE(tokenizer->adds_bos());
      EXPECT_EQ(sequence[0], tokenizer->bos());
      for (size_t t = 1; t < sequence.size(); ++t) {
        EXPECT_FALSE(tokenizer->is_control(sequence[t])) << t;
        EXPECT_FALSE(tokenizer->is_end(sequence[t])) << t;
        EXPECT_GE(sequence[t], 0);
        EXPECT_LT(sequence[t], model.n_vocab);
      }
    }
  }
}

// The sampled tokens follow the model: their mean surprise is the model's own entropy.
TEST(SelfText, IsDrawnFromTheModelsDistribution) {
  ThreadPool pool(1);
  Runtime rt{select_kernels(), pool};
  const Model model = open_tiny("tiny_llama");
  const auto tokenizer = Tokenizer::open(*model.file);
  auto ordinary = [&](int64_t v) {
    return !tokenizer->is_control(int32_t(v)) && !tokenizer->is_end(int32_t(v));
  };
  double difference = 0, variance = 0, n_ordinary = 0;
  for (int64_t v = 0; v < model.n_vocab; ++v) n_ordinary += ordinary(v);
  for (const auto& sequence :
       sample_self_text(rt, model, *tokenizer, {.seed = 2, .n_tokens = 200}, 0, 12)) {
    const MatrixBuffer l = all_logits(rt, model, sequence);
    for (int64_t t = 1; t + 1 < l.rows(); ++t) {
      double top = *std::max_element(l.row(t), l.row(t) + l.cols()), sum = 0;
      // Instead of a control token an ordinary one stands, any as likely as another.
      std::vector<double> p;
      double replaced = 0;
      for (int64_t v = 0; v < l.cols(); ++v) {
        p.push_back(std::exp(double(l.row(t)[v]) - top));
        sum += p.back();
        if (!ordinary(v)) replaced += std::exchange(p.back(), 0);
      }
      double entropy = 0, square = 0;
      for (int64_t v = 0; v < l.cols(); ++v) {
        if (!ordinary(v)) continue;
        double& x = p[size_t(v)];
        x = (x + replaced / n_ordinary) / sum;
        entropy -= x * std::log(x);
        square += x * std::log(x) * std::log(x);
      }
      difference += -std::log(std::max(1e-300, p[size_t(sequence[size_t(t + 1)])])) - entropy;
      variance += square - entropy * entropy;
    }
  }
  EXPECT_LT(std::fabs(difference), 4 * std::sqrt(variance));
}

}  // namespace
}  // namespace mt
