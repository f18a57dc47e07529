#include "measure/eval.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "base/error.h"
#include "model/open.h"

// The statistics against brute force in f64, the measurement against the definition of perplexity
// and of the KL divergence written out.
namespace mt {
namespace {

std::string golden(const std::string& name) {
  return std::string(MT_TEST_DATA) + "/" + name;
}

Windows random_windows(int n, int64_t n_ctx, int64_t n_vocab, unsigned seed) {
  std::mt19937 random(seed);
  Windows windows;
  for (int w = 0; w < n; ++w) {
    windows.emplace_back();
    for (int64_t t = 0; t < n_ctx; ++t)
      windows.back().push_back(static_cast<int32_t>(random() % static_cast<unsigned>(n_vocab)));
  }
  return windows;
}

std::vector<WindowStats> random_stats(int n, unsigned seed) {
  std::mt19937 random(seed);
  std::exponential_distribution<float> some(3);
  std::vector<WindowStats> stats(static_cast<size_t>(n));
  for (WindowStats& w : stats) {
    size_t tokens = 3 + random() % 9;
    for (size_t t = 0; t < tokens; ++t) {
      w.nll.push_back(some(random));
      w.base_nll.push_back(some(random));
      // Coarse, so that equal values occur within and between windows.
      w.kl.push_back(std::floor(some(random) * 20) / 20);
      w.dp.push_back(some(random) - 0.3f);
      w.same_top.push_back(random() % 4 ? 1.0f : 0.0f);
    }
  }
  return stats;
}

// log-softmax the plain way.
std::vector<double> log_softmax(const float* row, int64_t n) {
  double top = *std::max_element(row, row + n), sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(double(row[i]) - top);
  std::vector<double> out;
  for (int64_t i = 0; i < n; ++i) out.push_back(double(row[i]) - top - std::log(sum));
  return out;
}

// Logits of the whole window by the two public functions alone.
MatrixBuffer all_logits(const Runtime& rt, const Model& model, const std::vector<int32_t>& tokens) {
  KvCache cache(model, 1, std::ssize(tokens));
  Chunk chunk{.sequence = 0, .tokens = tokens};
  MatrixBuffer hidden = forward(rt, model, cache, {&chunk, 1});
  MatrixBuffer out(hidden.rows(), model.n_vocab);
  logits(rt, model, Path::exact, hidden, out);
  return out;
}

bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * 4) == 0);
}

TEST(Quantile, IsLinearBetweenNeighbours) {
  std::vector<float> v{1, 2, 4, 8};
  EXPECT_DOUBLE_EQ(quantile(v, 0), 1);
  EXPECT_DOUBLE_EQ(quantile(v, 1), 8);
  EXPECT_DOUBLE_EQ(quantile(v, 0.5), 3);
  EXPECT_DOUBLE_EQ(quantile(v, 0.9), 4 + 0.7 * 4);
  EXPECT_DOUBLE_EQ(quantile(std::vector<float>{5}, 0.3), 5);
}

TEST(Summary, EstimatesAreThoseOfAllTokens) {
  ThreadPool pool(2);
  auto stats = random_stats(7, 1);
  Summary s = summarise(pool, stats);
  double n = 0, nll = 0, nll2 = 0, base = 0, kl = 0, kl2 = 0, same = 0, dp = 0, dp2 = 0;
  std::vector<float> all;
  for (const auto& w : stats)
    for (size_t t = 0; t < w.nll.size(); ++t) {
      n += 1;
      nll += w.nll[t], nll2 += double(w.nll[t]) * w.nll[t];
      base += w.base_nll[t];
      kl += w.kl[t], kl2 += double(w.kl[t]) * w.kl[t];
      same += w.same_top[t];
      dp += w.dp[t], dp2 += double(w.dp[t]) * w.dp[t];
      all.push_back(w.kl[t]);
    }
  std::sort(all.begin(), all.end());
  EXPECT_EQ(s.n_windows, 7);
  EXPECT_EQ(double(s.n_tokens), n);
  EXPECT_NEAR(s.perplexity.value, std::exp(nll / n), 1e-12);
  EXPECT_NEAR(s.base_perplexity.value, std::exp(base / n), 1e-12);
  // llama.cpp's form: sqrt((mean of squares - square of the mean) / (n-1))
  EXPECT_NEAR(s.perplexity_se / s.perplexity.value,
              std::sqrt((nll2 / n - nll / n * nll / n) / (n - 1)), 1e-12);
  EXPECT_NEAR(s.kl_mean.value, kl / n, 1e-12);
  EXPECT_NEAR(s.kl_se, std::sqrt((kl2 / n - kl / n * kl / n) / (n - 1)), 1e-12);
  EXPECT_NEAR(s.same_top.value, same / n, 1e-12);
  EXPECT_NEAR(s.dp_mean.value, dp / n, 1e-12);
  EXPECT_NEAR(s.dp_rms.value, std::sqrt(dp2 / n), 1e-12);
  std::pair<Estimate, double> quantiles[] = {
      {s.kl_median, 0.5}, {s.kl_p90, 0.9}, {s.kl_p99, 0.99}, {s.kl_p999, 0.999}, {s.kl_max, 1}};
  for (auto [estimate, share] : quantiles)
    EXPECT_NEAR(estimate.value, quantile(all, share), 1e-7) << share;
}

// Against a bootstrap done the plain way, with draws of its own: intervals agree as two
// bootstraps of so many draws do.
TEST(Summary, IntervalsAreThoseOfABootstrapOverWindows) {
  ThreadPool pool(2);
  auto stats = random_stats(12, 2);
  constexpr int kDraws = 20000;
  Summary s = summarise(pool, stats, 5, kDraws);
  std::mt19937 random(3);
  std::map<std::string, std::vector<double>> drawn;
  for (int d = 0; d < kDraws; ++d) {
    double n = 0, nll = 0, kl = 0, dp2 = 0;
    std::vector<float> all;
    for (size_t i = 0; i < stats.size(); ++i) {
      const auto& w = stats[random() % stats.size()];
      for (size_t t = 0; t < w.nll.size(); ++t)
        n += 1, nll += w.nll[t], kl += w.kl[t], dp2 += double(w.dp[t]) * w.dp[t];
      all.insert(all.end(), w.kl.begin(), w.kl.end());
    }
    std::sort(all.begin(), all.end());
    drawn["perplexity"].push_back(std::exp(nll / n));
    drawn["kl"].push_back(kl / n);
    drawn["p90"].push_back(quantile(all, 0.9));
    drawn["median"].push_back(quantile(all, 0.5));
    drawn["dp"].push_back(std::sqrt(dp2 / n));
  }
  auto expect = [&](const std::string& which, const Estimate& e) {
    auto& v = drawn[which];
    std::sort(v.begin(), v.end());
    double low = v[kDraws / 40], high = v[kDraws - kDraws / 40];
    double slack = 0.05 * (high - low);
    EXPECT_NEAR(e.low, low, slack) << which;
    EXPECT_NEAR(e.high, high, slack) << which;
    EXPECT_LT(e.low, e.high) << which;
  };
  expect("perplexity", s.perplexity);
  expect("kl", s.kl_mean);
  expect("p90", s.kl_p90);
  expect("median", s.kl_median);
  expect("dp", s.dp_rms);
}

TEST(Summary, SeedAloneDecides) {
  ThreadPool one(1), three(3);
  auto stats = random_stats(9, 4);
  Summary a = summarise(one, stats, 7), b = summarise(three, stats, 7),
          c = summarise(one, stats, 8);
  EXPECT_EQ(a.kl_mean.low, b.kl_mean.low);
  EXPECT_EQ(a.kl_p99.high, b.kl_p99.high);
  EXPECT_NE(a.kl_mean.low, c.kl_mean.low);
  EXPECT_EQ(a.kl_mean.value, c.kl_mean.value);
}

TEST(Summary, OfNothingIsAnError) {
  ThreadPool pool(1);
  EXPECT_THROW(summarise(pool, {}), Error);
}

TEST(WindowStats, PackedIsUnpackedExactly) {
  for (bool base : {false, true}) {
    WindowStats w = random_stats(1, 5)[0];
    if (!base) w.base_nll = w.kl = w.dp = w.same_top = {};
    WindowStats back = WindowStats::unpack(w.pack());
    EXPECT_EQ(back.has_base(), base);
    EXPECT_TRUE(same_bytes(back.pack(), w.pack()));
    EXPECT_TRUE(same_bytes(back.nll, w.nll));
    EXPECT_TRUE(same_bytes(back.kl, w.kl));
    EXPECT_TRUE(same_bytes(back.same_top, w.same_top));
  }
}

TEST(WindowStats, RefusesWhatIsNoPackedWindow) {
  std::vector<std::vector<float>> wrong = {{},        {1},     {1, 0},      {2, 0, 1},    {1, 1, 1},
                                           {1, 2, 1}, {-1, 0}, {NAN, 0, 1}, {1e30f, 0, 1}};
  for (const auto& packed : wrong) EXPECT_THROW(WindowStats::unpack(packed), Error);
  EXPECT_EQ(WindowStats::unpack(std::vector<float>{1, 0, 5}).nll[0], 5);
}

TEST(WindowStats, RefusesWhatNoMeasurementGives) {
  // count, flag, nll, base nll, KL, change of p, same top
  const std::vector<float> right = {1, 1, 2, 2, 0.1f, -0.5f, 1};
  EXPECT_EQ(WindowStats::unpack(right).kl[0], 0.1f);
  for (const auto& [at, value] : std::vector<std::pair<size_t, float>>{
           {2, NAN}, {2, -3}, {3, INFINITY}, {4, -3}, {4, NAN}, {5, 2}, {6, 5}, {6, -1}}) {
    std::vector<float> wrong = right;
    wrong[at] = value;
    EXPECT_THROW(WindowStats::unpack(wrong), Error) << at << " " << value;
  }
}

TEST(Eval, PerplexityIsItsDefinition) {
  ThreadPool pool(2);
  Runtime rt{select_kernels(), pool};
  Model model = open_model(golden("tiny_llama.gguf"));
  for (int64_t n_ctx : {16, 33}) {
    Windows windows = random_windows(3, n_ctx, model.n_vocab, 1);
    double sum = 0, n = 0;
    for (const auto& w : windows) {
      MatrixBuffer rows = all_logits(rt, model, w);
      for (int64_t t = n_ctx / 2; t + 1 < n_ctx; ++t) {
        sum -= log_softmax(rows.row(t), model.n_vocab)[size_t(w[size_t(t + 1)])];
        n += 1;
      }
    }
    Comparison c = perplexity(rt, model, windows);
    EXPECT_EQ(c.n_windows, 3);
    EXPECT_EQ(double(c.n_tokens), n);
    EXPECT_EQ(c.n_tokens, 3 * (n_ctx - 1 - n_ctx / 2));
    EXPECT_EQ(c.n_ctx, n_ctx);
    EXPECT_EQ(c.path, "exact");
    EXPECT_NEAR(c.perplexity.value / std::exp(sum / n), 1, 1e-6);
  }
}

TEST(Eval, ComparisonIsItsDefinition) {
  ThreadPool pool(3);
  Runtime rt{select_kernels(), pool};
  Model base = open_model(golden("tiny_llama.gguf")), cut = open_model(golden("tiny_llama_b.gguf"));
  ASSERT_EQ(base.n_vocab, cut.n_vocab);
  Windows windows = random_windows(1, 24, base.n_vocab, 2);
  const auto& w = windows[0];
  MatrixBuffer base_rows = all_logits(rt, base, w), cut_rows = all_logits(rt, cut, w);
  WindowStats got = WindowEvaluator(rt, &base, cut, 24, Path::exact).measure(w);
  ASSERT_EQ(got.kl.size(), 11u);
  for (int64_t t = 12; t < 23; ++t) {
    auto p = log_softmax(base_rows.row(t), base.n_vocab);
    auto q = log_softmax(cut_rows.row(t), cut.n_vocab);
    double kl = 0;
    for (size_t i = 0; i < p.size(); ++i) kl += std::exp(p[i]) * (p[i] - q[i]);
    auto i = static_cast<size_t>(t - 12), truth = static_cast<size_t>(w[size_t(t + 1)]);
    EXPECT_GT(kl, 1e-3);  // the two models do differ
    EXPECT_NEAR(got.kl[i], kl, 2e-6);
    EXPECT_NEAR(got.nll[i], -q[truth], 2e-6);
    EXPECT_NEAR(got.base_nll[i], -p[truth], 2e-6);
    EXPECT_NEAR(got.dp[i], std::exp(q[truth]) - std::exp(p[truth]), 2e-6);
    bool same = std::max_element(p.begin(), p.end()) - p.begin() ==
                std::max_element(q.begin(), q.end()) - q.begin();
    EXPECT_EQ(got.same_top[i], same ? 1.0f : 0.0f);
  }
}

TEST(Eval, AModelAgainstItselfDiffersByNothing) {
  ThreadPool pool(2);
  Runtime rt{select_kernels(), pool};
  Model model = open_model(golden("tiny_qwen2.gguf"));
  Comparison c = compare(rt, model, model, random_windows(2, 20, model.n_vocab, 3));
  EXPECT_EQ(c.kl_max.value, 0);
  EXPECT_EQ(c.kl_mean.value, 0);
  EXPECT_EQ(c.same_top.value, 1);
  EXPECT_EQ(c.dp_rms.value, 0);
  EXPECT_EQ(c.perplexity.value, c.base_perplexity.value);
  EXPECT_EQ(c.perplexity.low, c.base_perplexity.low);
}

TEST(Eval, SameBytesForAnyNumberOfThreads) {
  Model base = open_model(golden("tiny_llama.gguf")), cut = open_model(golden("tiny_llama_b.gguf"));
  Windows windows = random_windows(1, 40, base.n_vocab, 4);
  std::vector<float> first;
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    Runtime rt{select_kernels(), pool};
    auto packed = WindowEvaluator(rt, &base, cut, 40, Path::exact).measure(windows[0]).pack();
    if (first.empty()) first = packed;
    EXPECT_TRUE(same_bytes(first, packed)) << threads;
  }
}

TEST(Eval, GoesOnFromStoredWindows) {
  ThreadPool pool(2);
  Runtime rt{select_kernels(), pool};
  Model base = open_model(golden("tiny_llama.gguf")), cut = open_model(golden("tiny_llama_b.gguf"));
  Windows windows = random_windows(4, 16, base.n_vocab, 5);
  std::map<int64_t, std::vector<float>> kept;
  EvalOptions options;
  options.store = [&](int64_t w, const WindowStats& s) { kept[w] = s.pack(); };
  Comparison whole = compare(rt, base, cut, windows, options);
  ASSERT_EQ(kept.size(), 4u);
  kept.erase(2);
  kept.erase(3);
  int measured = 0;
  options.stored = [&](int64_t w) -> std::optional<WindowStats> {
    if (!kept.contains(w)) return std::nullopt;
    return WindowStats::unpack(kept[w]);
  };
  options.store = [&](int64_t, const WindowStats&) { ++measured; };
  Comparison resumed = compare(rt, base, cut, windows, options);
  EXPECT_EQ(measured, 2);
  EXPECT_EQ(resumed.kl_mean.value, whole.kl_mean.value);
  EXPECT_EQ(resumed.kl_p99.high, whole.kl_p99.high);
  EXPECT_EQ(resumed.perplexity.low, whole.perplexity.low);
}

TEST(Eval, LogitsOfAWindowAreTheModels) {
  ThreadPool pool(2);
  Runtime rt{select_kernels(), pool};
  Model model = open_model(golden("tiny_qwen3.gguf"));
  auto tokens = random_windows(1, 12, model.n_vocab, 6)[0];
  MatrixBuffer expected = all_logits(rt, model, tokens);
  std::vector<float> got;
  window_logits(rt, model, tokens, Path::exact, [&](ConstMatrix rows) {
    got.insert(got.end(), rows.data, rows.data + rows.rows * rows.cols);
  });
  ASSERT_EQ(got.size(), size_t(12 * model.n_vocab));
  EXPECT_EQ(std::memcmp(got.data(), expected.data(), got.size() * 4), 0);
}

TEST(Eval, RefusesWhatCannotBeMeasured) {
  ThreadPool pool(1);
  Runtime rt{select_kernels(), pool};
  Model model = open_model(golden("tiny_llama.gguf"));
  EXPECT_THROW(perplexity(rt, model, Windows()), Error);
  EXPECT_THROW(perplexity(rt, model, Windows{{1, 2}}), Error);
  EXPECT_THROW(perplexity(rt, model, Windows{{1, 2, 3, int32_t(model.n_vocab)}}), Error);
  Model other = model;
  other.n_vocab -= 1;
  EXPECT_THROW(compare(rt, other, model, random_windows(1, 8, 10, 7)), Error);
}

TEST(Eval, LogitsThatAreNoNumbersAreAnError) {
  ThreadPool pool(2);
  Runtime rt{select_kernels(), pool};
  Model model = open_model(golden("tiny_llama.gguf"));
  model.final_norm[0] = NAN;
  EXPECT_THROW(perplexity(rt, model, random_windows(1, 8, model.n_vocab, 8)), Error);
}

}  // namespace
}  // namespace mt
