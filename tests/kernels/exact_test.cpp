#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/kernels.h"

// The exact path: every table gives the reference's bits, and the reference is right.
namespace mt {
namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();
const std::vector<int64_t> lengths = {0,  1,  2,  3,  5,  7,  8,   9,   15,  16,
                                      17, 31, 32, 33, 47, 64, 100, 257, 1000};

std::vector<float> random_values(std::mt19937& random, int64_t n, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = normal(random);
  return v;
}

void sprinkle(std::mt19937& random, std::vector<float>& v, const std::vector<float>& specials) {
  for (float& x : v)
    if (random() % 3 == 0) x = specials[random() % specials.size()];
}

template <class T>
bool same(T a, T b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0;
}

void expect_same(const std::vector<float>& expected, const std::vector<float>& got,
                 const Kernels& table, const char* what, int64_t n) {
  for (size_t i = 0; i < expected.size(); ++i)
    ASSERT_TRUE(same(expected[i], got[i])) << table.name << " " << what << " n=" << n << " [" << i
                                           << "]: " << got[i] << ", reference " << expected[i];
}

TEST(Exact, GemmPanelIsOneChainInEveryTable) {
  std::mt19937 random(1);
  const Kernels& reference = reference_kernels();
  for (const Kernels* table : available_kernels()) {
    for (int64_t m : {0, 1, 2, 5, 6, 7, 11, 12, 13, 25, 37}) {
      for (int64_t n : {1, 7, 8, 9, 15, 16, 17, 24, 31, 32}) {
        for (int64_t k : {0, 1, 3, 64, 101}) {
          int64_t lda = k + 3, ldb = 32 + (k % 2) * 8, ldc = n + 2;
          auto a = random_values(random, m * lda), b = random_values(random, k * ldb + 32);
          auto c = random_values(random, m * ldc + 40);
          if (m % 2) sprinkle(random, a, {0.0f, -0.0f, inf, nan, 1e30f});
          for (bool accumulate : {false, true}) {
            auto expected = c, got = c;
            reference.gemm_panel(m, n, k, a.data(), lda, b.data(), ldb, expected.data(), ldc,
                                 accumulate);
            table->gemm_panel(m, n, k, a.data(), lda, b.data(), ldb, got.data(), ldc, accumulate);
            expect_same(expected, got, *table, "gemm_panel", n);
          }
        }
      }
    }
  }
}

TEST(Exact, GemmPanelGoesOnThroughMemory) {
  std::mt19937 random(2);
  int64_t m = 13, n = 32, k = 300;
  auto a = random_values(random, m * k), b = random_values(random, k * 32);
  for (const Kernels* table : available_kernels()) {
    std::vector<float> whole(size_t(m * n)), parts(size_t(m * n));
    table->gemm_panel(m, n, k, a.data(), k, b.data(), 32, whole.data(), n, false);
    for (int64_t p = 0; p < k; p += 128)
      table->gemm_panel(m, n, std::min<int64_t>(128, k - p), a.data() + p, k, b.data() + p * 32, 32,
                        parts.data(), n, p > 0);
    expect_same(whole, parts, *table, "gemm_panel in parts", n);
    double exact = 0.0;
    for (int64_t p = 0; p < k; ++p)
      exact += double(a[size_t(5 * k + p)]) * double(b[size_t(p * 32 + 9)]);
    EXPECT_NEAR(whole[size_t(5 * n + 9)], exact, 1e-4);
  }
}

// Rows 4 KB apart are copied out first where they would crowd the cache.
TEST(Exact, GemmPanelWithCrowdedRows) {
  std::mt19937 random(8);
  int64_t m = 26, n = 31, k = 600, lda = 1024;
  auto a = random_values(random, m * lda), b = random_values(random, k * 32);
  auto c = random_values(random, m * n);
  for (const Kernels* table : available_kernels()) {
    for (bool accumulate : {false, true}) {
      auto expected = c, got = c;
      reference_kernels().gemm_panel(m, n, k, a.data(), lda, b.data(), 32, expected.data(), n,
                                     accumulate);
      table->gemm_panel(m, n, k, a.data(), lda, b.data(), 32, got.data(), n, accumulate);
      expect_same(expected, got, *table, "gemm_panel", n);
    }
  }
}

TEST(Exact, TransposePanel) {
  std::mt19937 random(3);
  for (const Kernels* table : available_kernels()) {
    for (int64_t n : {1, 5, 8, 16, 17, 31, 32}) {
      for (int64_t k : {0, 1, 7, 16, 33, 70}) {
        // No slack at the end of the source: the sanitizer sees a read beyond it.
        auto src = random_values(random, std::max<int64_t>((n - 1) * (k + 1) + k, 0));
        std::vector<float> dst(size_t(k * 32), nan);
        table->transpose_panel(n, k, src.data(), k + 1, dst.data());
        for (int64_t p = 0; p < k; ++p)
          for (int64_t j = 0; j < 32; ++j)
            ASSERT_EQ(dst[size_t(p * 32 + j)], j < n ? src[size_t(j * (k + 1) + p)] : 0.0f)
                << table->name << " n=" << n << " k=" << k << " p=" << p << " j=" << j;
      }
    }
  }
}

TEST(Exact, ExpSum) {
  std::mt19937 random(4);
  const std::vector<float> specials = {-inf,  -200.0f, -87.3f, -87.31f, -87.29f, 0.0f, -0.0f,
                                       88.0f, 88.37f,  88.38f, 1e30f,   -1e30f,  nan,  inf};
  for (const Kernels* table : available_kernels()) {
    for (int64_t n : lengths) {
      for (bool special : {false, true}) {
        auto x = random_values(random, n, 20.0f);
        if (special) sprinkle(random, x, specials);
        for (float shift : {0.0f, 3.7f}) {
          auto expected = x, got = x;
          double sum = reference_kernels().exp_sum(expected.data(), n, shift);
          double got_sum = table->exp_sum(got.data(), n, shift);
          expect_same(expected, got, *table, "exp_sum", n);
          EXPECT_TRUE(same(sum, got_sum))
              << table->name << " n=" << n << ": " << got_sum << ", " << sum;
        }
      }
    }
  }
}

TEST(Exact, ExponentialIsAccurate) {
  for (float x = -87.3f; x < 88.3f; x += 0.0137f) {
    float y = x;
    double sum = reference_kernels().exp_sum(&y, 1, 0.0f);
    double exact = std::exp(double(x));
    ASSERT_LT(std::fabs(y - exact), 3e-7 * exact) << x;
    ASSERT_EQ(sum, double(y));
  }
  std::vector<float> x = {-inf, -200.0f, 0.0f, 88.0f, 200.0f};
  reference_kernels().exp_sum(x.data(), 5, 0.0f);
  EXPECT_EQ(x[0], 0.0f);
  EXPECT_EQ(x[1], 0.0f);
  EXPECT_EQ(x[2], 1.0f);
  EXPECT_NEAR(x[3] / std::exp(88.0), 1.0, 1e-6);
  EXPECT_EQ(x[4], inf);
}

TEST(Exact, Activations) {
  std::mt19937 random(5);
  for (const Kernels* table : available_kernels()) {
    for (int64_t n : lengths) {
      auto g = random_values(random, n, 6.0f), u = random_values(random, n);
      if (n % 2) sprinkle(random, g, {-inf, inf, nan, 0.0f, -0.0f, -88.4f, -100.0f, 1e20f, -1e20f});
      std::vector<float> expected(size_t(n), 7.0f), got(size_t(n), 7.0f);
      reference_kernels().silu_mul(g.data(), u.data(), expected.data(), n);
      table->silu_mul(g.data(), u.data(), got.data(), n);
      expect_same(expected, got, *table, "silu_mul", n);
      reference_kernels().gelu_mul(g.data(), u.data(), expected.data(), n);
      table->gelu_mul(g.data(), u.data(), got.data(), n);
      expect_same(expected, got, *table, "gelu_mul", n);
    }
  }
}

TEST(Exact, ActivationsAreAccurate) {
  for (float x = -100.0f; x < 100.0f; x += 0.0173f) {
    float one = 1.0f, y;
    double g = x;
    reference_kernels().silu_mul(&x, &one, &y, 1);
    double silu = g / (1.0 + std::exp(-g));
    ASSERT_LT(std::fabs(y - silu), std::max(1e-6 * std::fabs(silu), 3e-7)) << x;
    reference_kernels().gelu_mul(&x, &one, &y, 1);
    double gelu = 0.5 * g * (1.0 + std::tanh(0.7978845608 * (g + 0.044715 * g * g * g)));
    ASSERT_LT(std::fabs(y - gelu), std::max(1e-6 * std::fabs(gelu), 3e-7)) << x;
  }
}

TEST(Exact, VectorFunctions) {
  std::mt19937 random(6);
  for (const Kernels* table : available_kernels()) {
    for (int64_t n : lengths) {
      for (bool special : {false, true}) {
        auto x = random_values(random, n), y = random_values(random, n);
        if (special) sprinkle(random, x, {0.0f, -0.0f, nan, -inf, 1e-40f});
        const Kernels& reference = reference_kernels();
        EXPECT_TRUE(same(reference.dot(x.data(), y.data(), n), table->dot(x.data(), y.data(), n)))
            << table->name << " n=" << n;
        EXPECT_TRUE(same(reference.max(x.data(), n), table->max(x.data(), n)))
            << table->name << " n=" << n;
        auto expected = y, got = y;
        reference.axpy(0.3f, x.data(), expected.data(), n);
        table->axpy(0.3f, x.data(), got.data(), n);
        expect_same(expected, got, *table, "axpy", n);
        reference.add(x.data(), expected.data(), n);
        table->add(x.data(), got.data(), n);
        expect_same(expected, got, *table, "add", n);
        reference.scale_mul(x.data(), y.data(), 0.7f, expected.data(), n);
        table->scale_mul(x.data(), y.data(), 0.7f, got.data(), n);
        expect_same(expected, got, *table, "scale_mul", n);
      }
    }
  }
  std::vector<float> x = {nan, -3.0f, 2.0f, nan, 1.0f};
  EXPECT_EQ(reference_kernels().max(x.data(), 5), 2.0f);
  EXPECT_EQ(reference_kernels().max(x.data(), 0), -inf);
  x = {1.0f, 2.0f, 3.0f};
  EXPECT_EQ(reference_kernels().dot(x.data(), x.data(), 3), 14.0f);
}

TEST(Exact, Rope) {
  std::mt19937 random(7);
  for (const Kernels* table : available_kernels()) {
    for (int64_t n_pairs : {0, 1, 3, 4, 5, 8, 9, 16, 17, 32, 40, 64}) {
      auto x = random_values(random, 2 * n_pairs);
      std::vector<float> cos_sin(size_t(2 * n_pairs));
      for (int64_t i = 0; i < n_pairs; ++i) {
        cos_sin[size_t(2 * i)] = std::cos(float(i));
        cos_sin[size_t(2 * i + 1)] = std::sin(float(i));
      }
      for (bool neox : {false, true}) {
        auto expected = x, got = x;
        reference_kernels().rope(expected.data(), cos_sin.data(), n_pairs, neox);
        table->rope(got.data(), cos_sin.data(), n_pairs, neox);
        expect_same(expected, got, *table, "rope", n_pairs);
        for (int64_t i = 0; i < n_pairs; ++i) {
          size_t first = size_t(neox ? i : 2 * i), second = size_t(neox ? i + n_pairs : 2 * i + 1);
          ASSERT_NEAR(got[first], x[first] * std::cos(float(i)) - x[second] * std::sin(float(i)),
                      1e-5);
          ASSERT_NEAR(got[second], x[second] * std::cos(float(i)) + x[first] * std::sin(float(i)),
                      1e-5);
        }
      }
    }
  }
}

}  // namespace
}  // namespace mt
