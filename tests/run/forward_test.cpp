#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "run/tiny.h"

namespace mt {
namespace {

double largest_difference(ConstMatrix a, const float* b) {
  double worst = 0;
  for (int64_t t = 0; t < a.rows; ++t)
    for (int64_t i = 0; i < a.cols; ++i)
      worst = std::max(worst, std::fabs(double(a.row(t)[i]) - double(b[t * a.cols + i])));
  return worst;
}

TEST(Forward, LogitsAgreeWithAnIndependentImplementation) {
  ThreadPool pool(2);
  Runtime rt{select_kernels(), pool};
  for (const auto& name : kTinyModels) {
    Model model = open_tiny(name);
    auto ids = read_golden<int32_t>(name + ".ids.i32");
    auto golden = read_golden<float>(name + ".logits.f32");
    ASSERT_EQ(golden.size(), ids.size() * size_t(model.n_vocab)) << name;
    MatrixBuffer out = all_logits(rt, model, ids);
    EXPECT_LT(largest_difference(out, golden.data()), 1e-4) << name;
  }
}

TEST(Forward, SameBitsForEveryInstructionSetAndNumberOfThreads) {
  for (const auto& name : kTinyModels) {
    Model model = open_tiny(name);
    auto ids = read_golden<int32_t>(name + ".ids.i32");
    ThreadPool one(1), three(3);
    MatrixBuffer base = all_logits({reference_kernels(), one}, model, ids);
    for (const Kernels* k : available_kernels()) {
      MatrixBuffer out = all_logits({*k, three}, model, ids);
      EXPECT_EQ(std::memcmp(base.data(), out.data(), size_t(base.rows() * base.cols()) * 4), 0)
          << name << " " << k->name;
    }
  }
}

TEST(Forward, TokenByTokenAgreesWithOneBatch) {
  ThreadPool pool(2);
  Runtime rt{select_kernels(), pool};
  for (const auto& name : kTinyModels) {
    Model model = open_tiny(name);
    auto ids = read_golden<int32_t>(name + ".ids.i32");
    MatrixBuffer whole = all_logits(rt, model, ids);
    KvCache cache(model, 2, std::ssize(ids));
    std::span<const int32_t> all(ids);
    MatrixBuffer row(2, model.n_vocab);
    for (size_t t = 0; t < ids.size(); ++t) {
      // Two sequences side by side, the second only for its first tokens.
      std::vector<Chunk> chunks{{0, all.subspan(t, 1)}};
      if (t < 5) chunks.push_back({1, all.subspan(t, 1)});
      MatrixBuffer hidden = forward(rt, model, cache, chunks);
      logits(rt, model, Path::exact, hidden, row.view().slice_rows(0, hidden.rows()));
      for (int64_t r = 0; r < hidden.rows(); ++r)
        EXPECT_LT(largest_difference(row.view().slice_rows(r, r + 1), whole.row(int64_t(t))), 1e-4)
            << name << " position " << t;
    }
  }
}

TEST(Forward, EmbeddingPlusUpdatesIsTheFinalStream) {
  ThreadPool pool(2);
  Runtime rt{select_kernels(), pool};
  for (const auto& name : kTinyModels) {
    Model model = open_tiny(name);
    auto ids = read_golden<int32_t>(name + ".ids.i32");
    const int64_t n = std::ssize(ids), d = model.d_model;
    std::vector<double> sum(size_t(n * d), 0.0);
    std::vector<float> row(static_cast<size_t>(d));
    for (int64_t t = 0; t < n; ++t) {
      const Weight& w = model.embedding.weight;
      decode_row(w.dtype, w.row(ids[size_t(t)]), row.data(), d);
      for (int64_t i = 0; i < d; ++i)
        sum[size_t(t * d + i)] = double(row[size_t(i)]) * double(model.embedding_scale);
    }
    std::vector<float> stream;
    ForwardOptions options;
    options.tap = [&](Point point, int64_t, Matrix value) {
      if (point == Point::update)
        for (int64_t i = 0; i < n * d; ++i) sum[size_t(i)] += double(value.data[i]);
      if (point == Point::stream) stream.assign(value.data, value.data + n * d);
    };
    all_logits(rt, model, ids, options);
    ASSERT_EQ(stream.size(), sum.size());
    for (size_t i = 0; i < sum.size(); ++i)
      ASSERT_NEAR(sum[i], double(stream[i]), 1e-4 * (1 + std::fabs(sum[i]))) << name;
  }
}

TEST(Forward, FastPathIsNearTheExactOne) {
  ThreadPool pool(2);
  Runtime rt{select_kernels(), pool};
  for (const auto& name : kTinyModels) {
    Model model = open_tiny(name);
    auto ids = read_golden<int32_t>(name + ".ids.i32");
    ids.resize(6);  // few tokens: the quantised dot products
    ForwardOptions fast;
    fast.path = Path::fast;
    MatrixBuffer exact = all_logits(rt, model, ids), quick = all_logits(rt, model, ids, fast);
    EXPECT_LT(largest_difference(quick, exact.data()), 0.2) << name;
  }
}

TEST(Forward, Bf16IsNearTheExactPathAndTheSameEverywhere) {
  ThreadPool one(1), three(3);
  for (const auto& name : kTinyModels) {
    Model model = open_tiny(name);
    const auto all = read_golden<int32_t>(name + ".ids.i32");
    ForwardOptions bf16;
    bf16.path = Path::bf16;
    for (size_t n : {size_t{6}, all.size()}) {
      const auto ids = std::span(all).first(n);
      MatrixBuffer exact = all_logits({select_kernels(), three}, model, ids);
      MatrixBuffer expected = all_logits({reference_kernels(), one}, model, ids, bf16);
      const double distance = relative_rms(expected, exact);
      // An operand rounded to 8 bits is off by 2^-8 at most and by 0.0017 in the root mean square,
      // a product of two by 0.0024, and so is a sum of many whose errors are independent, however
      // long. A dozen products in a row: 0.008. Measured: 0.003 to 0.0105.
      EXPECT_LT(distance, 0.02) << name;
      EXPECT_GT(distance, 0) << name;
      for (const Kernels* table : available_kernels())
        EXPECT_EQ(
            largest_difference(all_logits({*table, three}, model, ids, bf16), expected.data()), 0)
            << name << " " << table->name;
    }
  }
}

TEST(Forward, RefusesForeignTokensAndAFullCache) {
  ThreadPool pool(1);
  Runtime rt{reference_kernels(), pool};
  Model model = open_tiny("tiny_llama");
  KvCache cache(model, 1, 4);
  std::vector<int32_t> bad{1, int32_t(model.n_vocab)}, long_text{1, 2, 3, 4, 5};
  Chunk a{0, bad}, b{0, long_text};
  EXPECT_THROW(forward(rt, model, cache, {&a, 1}), Error);
  EXPECT_THROW(forward(rt, model, cache, {&b, 1}), Error);
}

}  // namespace
}  // namespace mt
