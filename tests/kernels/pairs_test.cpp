#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/kernels.h"

// The bf16 path: every table gives the reference's bits, and the reference is right.
namespace mt {
namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

std::vector<uint32_t> random_words(std::mt19937& random, int64_t n, bool any) {
  std::normal_distribution<float> normal;
  auto half = [&] { return std::bit_cast<uint32_t>(normal(random)) >> 16; };
  std::vector<uint32_t> v(static_cast<size_t>(n));
  for (uint32_t& w : v) w = any ? uint32_t(random()) : half() | half() << 16;
  return v;
}

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) ||
         std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

TEST(Pairs, RoundingIsNearestEvenWithoutDenormals) {
  const std::vector<std::pair<float, uint32_t>> cases{
      {1.0f, 0x3f80},
      {-2.5f, 0xc020},
      {0x1.01p0f, 0x3f80},  // halfway, down to the even one
      {0x1.03p0f, 0x3f82},  // halfway, up to the even one
      {0x1.010002p0f, 0x3f81},
      {0x1.fffffep127f, 0x7f80},
      {inf, 0x7f80},
      {-inf, 0xff80},
      {0.0f, 0},
      {-0.0f, 0x8000},
      {0x1p-126f, 0x0080},
      {0x1.fffffcp-127f, 0},
      {-1e-40f, 0x8000},
      {nan, 0x7fc0},
      {std::bit_cast<float>(0x7f800001u), 0x7fc0}};
  for (const Kernels* table : available_kernels())
    for (const auto& [x, expected] : cases) {
      const std::vector<float> row(33, x);
      std::vector<uint32_t> pairs(17);
      table->round_pairs(row.data(), 33, pairs.data());
      EXPECT_EQ(pairs[0], expected | expected << 16) << table->name << " " << x;
      EXPECT_EQ(pairs[16], expected) << table->name << " " << x;
    }
}

TEST(Pairs, RoundAndInterleaveLieAsDocumented) {
  std::mt19937 random(1);
  for (const Kernels* table : available_kernels())
    for (int64_t n : {1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 50, 64, 131})
      for (int64_t k : {1, 2, 3, 8}) {
        // No slack at the end of the source: the sanitizer sees a read beyond it.
        std::vector<float> src(static_cast<size_t>((k - 1) * (n + 3) + n));
        for (float& x : src) x = std::bit_cast<float>(uint32_t(random()));
        auto half = [&](int64_t p, int64_t j) {
          uint32_t y = 0;
          if (p < k) reference_kernels().round_pairs(&src[size_t(p * (n + 3) + j)], 1, &y);
          return y;
        };
        std::vector<uint32_t> dst(static_cast<size_t>((k + 1) / 2 * (n + 5)), 7);
        table->interleave_pairs(n, k, src.data(), n + 3, dst.data(), n + 5);
        for (int64_t p = 0; p < k; p += 2)
          for (int64_t j = 0; j < n + 5; ++j)
            ASSERT_EQ(dst[size_t(p / 2 * (n + 5) + j)],
                      j < n ? half(p, j) | half(p + 1, j) << 16 : 7)
                << table->name << " n=" << n << " k=" << k << " p=" << p << " j=" << j;
        std::vector<uint32_t> row(static_cast<size_t>((n + 1) / 2 + 1), 7);
        table->round_pairs(src.data(), n, row.data());
        for (int64_t j = 0; j < n; j += 2)
          ASSERT_EQ(row[size_t(j / 2)], half(0, j) | (j + 1 < n ? half(0, j + 1) << 16 : 0))
              << table->name << " n=" << n << " j=" << j;
        EXPECT_EQ(row.back(), 7u);
      }
}

TEST(Pairs, Transpose) {
  std::mt19937 random(3);
  for (const Kernels* table : available_kernels())
    for (int64_t n : {1, 5, 8, 16, 17, 31, 32})
      for (int64_t k : {0, 1, 7, 16, 33, 70}) {
        auto src = random_words(random, std::max<int64_t>((n - 1) * (k + 1) + k, 0), true);
        std::vector<uint32_t> dst(size_t(k * 32), 7);
        table->transpose_pairs(n, k, src.data(), k + 1, dst.data());
        for (int64_t p = 0; p < k; ++p)
          for (int64_t j = 0; j < 32; ++j)
            ASSERT_EQ(dst[size_t(p * 32 + j)], j < n ? src[size_t(j * (k + 1) + p)] : 0)
                << table->name << " n=" << n << " k=" << k << " p=" << p << " j=" << j;
      }
}

// Words of any bits too: infinities, NaNs, denormals, overflow.
TEST(Pairs, GemmIsOneChainInEveryTable) {
  std::mt19937 random(1);
  for (const Kernels* table : available_kernels())
    for (int64_t m : {0, 1, 3, 4, 5, 9, 10, 11, 12, 13, 25})
      for (int64_t n : {1, 8, 9, 16, 17, 31, 32})
        for (int64_t k : {0, 1, 2, 67})
          for (bool apart : {false, true}) {
            const bool any = (m + n + k) % 2;
            const int64_t a_row = apart ? 1 : k + 3, a_pair = apart ? m + 2 : 1,
                          ldb = 32 + k % 3 * 8;
            auto a = random_words(random, (m + 3) * (k + 3), any);
            auto b = random_words(random, k * ldb + 32, any);
            std::vector<float> c(static_cast<size_t>(m * (n + 2)));
            for (float& x : c) x = std::bit_cast<float>(random_words(random, 1, any)[0]);
            for (bool accumulate : {false, true}) {
              auto expected = c, got = c;
              reference_kernels().gemm_pairs(m, n, k, a.data(), a_row, a_pair, b.data(), ldb,
                                             expected.data(), n + 2, accumulate);
              table->gemm_pairs(m, n, k, a.data(), a_row, a_pair, b.data(), ldb, got.data(), n + 2,
                                accumulate);
              for (size_t i = 0; i < c.size(); ++i)
                ASSERT_TRUE(same(expected[i], got[i]))
                    << table->name << " m=" << m << " n=" << n << " k=" << k << " [" << i
                    << "]: " << got[i] << ", reference " << expected[i];
            }
          }
}

// Where denormals begin: products and sums on both sides of 2^-126, tiny after rounding.
TEST(Pairs, GemmFlushesWhatIsTinyAfterRounding) {
  auto bf16 = [](float x) { return std::bit_cast<uint32_t>(x) >> 16; };
  // c = 2^-126 - f * 2^-150
  const std::vector<std::pair<float, float>> cases{
      {0.25f, 0x1p-126f}, {0.5f, 0x1p-126f}, {0.625f, 0.0f}, {0.875f, 0.0f}, {1.5f, 0.0f}};
  for (const Kernels* table : available_kernels()) {
    for (const auto& [f, expected] : cases)
      for (float sign : {1.0f, -1.0f})
        for (int shift : {0, 16}) {
          const uint32_t a = bf16(-sign * f * 0x1p-75f) << shift;
          const std::vector<uint32_t> b(32, bf16(0x1p-75f) << shift);
          float c = sign * 0x1p-126f;
          table->gemm_pairs(1, 1, 1, &a, 1, 1, b.data(), 32, &c, 1, true);
          EXPECT_EQ(c, sign * expected) << table->name << " " << f;
          // After the high halves + 0 * 0 follows.
          EXPECT_EQ(std::signbit(c), sign < 0 && (shift == 0 || expected > 0))
              << table->name << " " << f;
        }
    std::mt19937 random(2);
    for (int round = 0; round < 3000; ++round) {
      auto small = [&] { return uint32_t((random() & 0x807f) | (40 + random() % 50) << 7); };
      std::vector<uint32_t> a(3), b(96);
      for (uint32_t& w : a) w = small() | small() << 16;
      for (uint32_t& w : b) w = small() | small() << 16;
      std::vector<float> c(32);
      for (float& x : c)
        x = std::bit_cast<float>(uint32_t((random() & 0x80ffffff) | (random() % 3) << 24));
      auto expected = c, got = c;
      reference_kernels().gemm_pairs(1, 32, 3, a.data(), 3, 1, b.data(), 32, expected.data(), 32,
                                     true);
      table->gemm_pairs(1, 32, 3, a.data(), 3, 1, b.data(), 32, got.data(), 32, true);
      for (size_t i = 0; i < c.size(); ++i)
        ASSERT_TRUE(same(expected[i], got[i]))
            << table->name << " " << expected[i] << " " << got[i];
    }
    EXPECT_EQ(1e-40f * 0.5f, 5e-41f) << "the flags are set back";
  }
}

TEST(Pairs, GemmIsAccurate) {
  std::mt19937 random(4);
  auto a = random_words(random, 2 * 300, false), b = random_words(random, 300 * 32, false);
  auto high = [](uint32_t w) { return double(std::bit_cast<float>(w & 0xffff0000u)); };
  auto low = [](uint32_t w) { return double(std::bit_cast<float>(w << 16)); };
  for (const Kernels* table : available_kernels()) {
    std::vector<float> c(64);
    table->gemm_pairs(2, 32, 300, a.data(), 300, 1, b.data(), 32, c.data(), 32, false);
    double exact = 0, size = 0;
    for (size_t p = 0; p < 300; ++p) {
      const uint32_t x = a[300 + p], y = b[p * 32 + 9];
      exact += high(x) * high(y) + low(x) * low(y);
      size += std::fabs(high(x) * high(y)) + std::fabs(low(x) * low(y));
    }
    EXPECT_NEAR(c[32 + 9], exact, 1e-6 * size) << table->name;
  }
}

}  // namespace
}  // namespace mt
