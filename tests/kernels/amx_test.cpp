#include "kernels/amx.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/kernels.h"

// The tile unit's product: its steps on tiles in plain memory everywhere, the unit where there is
// one.
namespace mt {
namespace {

double half(uint32_t pair, bool second) {
  return std::bit_cast<float>(second ? pair & 0xffff0000u : pair << 16);
}

void check(GemmTiles gemm) {
  std::mt19937 random(31);
  std::normal_distribution<float> normal;
  auto words = [&](int64_t n) {
    std::vector<uint32_t> v(static_cast<size_t>(n));
    auto bits = [&] { return std::bit_cast<uint32_t>(normal(random)) >> 16; };
    for (uint32_t& w : v) w = bits() | bits() << 16;
    return v;
  };
  for (int64_t m : {1, 5, 16, 17, 31, 32, 33, 64, 83})
    for (int64_t n : {1, 15, 16, 20, 32})
      for (int64_t k : {16, 32, 128}) {
        const int64_t lda = k + 16, ldb = 32, ldc = n + 3;
        const auto a = words(m * lda), b = words(k * ldb);
        for (bool accumulate : {false, true}) {
          std::vector<float> c(static_cast<size_t>(m * ldc), 0.5f);
          gemm(m, n, k, a.data(), lda, b.data(), ldb, c.data(), ldc, accumulate);
          for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < n; ++j) {
              double sum = accumulate ? 0.5 : 0.0, magnitude = 0.5;
              for (int64_t p = 0; p < k; ++p)
                for (bool second : {false, true}) {
                  const double product =
                      half(a[size_t(i * lda + p)], second) * half(b[size_t(p * ldb + j)], second);
                  sum += product;
                  magnitude += std::fabs(product);
                }
              ASSERT_NEAR(c[size_t(i * ldc + j)], sum, 2e-6 * magnitude)
                  << m << " x " << n << " x " << k << " at " << i << ", " << j;
            }
            for (int64_t j = n; j < ldc; ++j) ASSERT_EQ(c[size_t(i * ldc + j)], 0.5f);
          }
        }
      }
}

TEST(Amx, PlainTilesGiveTheProduct) {
  check(plain_tiles_gemm_pairs);
}

// The trial before the unit is used: what it must see is right where columns are few, or where sums
// begin at zero.
TEST(Amx, TheTrialSeesWhatIsWrong) {
  EXPECT_TRUE(agrees_with_plain_tiles(plain_tiles_gemm_pairs));
  const GemmTiles wrong[] = {
      [](int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t lda, const uint32_t* b,
         int64_t ldb, float* c, int64_t ldc,
         bool) { plain_tiles_gemm_pairs(m, n, k, a, lda, b, ldb, c, ldc, false); },
      [](int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t lda, const uint32_t* b,
         int64_t ldb, float* c, int64_t ldc, bool accumulate) {
        plain_tiles_gemm_pairs(m, n, k, a, lda, b, ldb, c, ldc, accumulate && n < 32);
      },
      [](int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t lda, const uint32_t* b,
         int64_t ldb, float* c, int64_t ldc, bool accumulate) {
        plain_tiles_gemm_pairs(m, std::min<int64_t>(n, 31), k, a, lda, b, ldb, c, ldc, accumulate);
      },
      [](int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t lda, const uint32_t* b,
         int64_t ldb, float* c, int64_t ldc, bool accumulate) {
        plain_tiles_gemm_pairs(std::min<int64_t>(m, 32), n, k, a, lda, b, ldb, c, ldc, accumulate);
      }};
  for (const GemmTiles gemm : wrong)
    EXPECT_FALSE(agrees_with_plain_tiles(gemm)) << &gemm - &wrong[0];
}

TEST(Amx, TheUnitGivesTheProduct) {
  if (!amx_runs()) GTEST_SKIP() << "no tile unit here";
  check(amx_gemm_pairs);
}

TEST(Amx, TheTableIsOfferedWhereTheUnitRuns) {
  bool offered = false;
  for (const Kernels* table : available_kernels()) offered |= table->gemm_tiles != nullptr;
  EXPECT_EQ(offered, amx_runs());
}

}  // namespace
}  // namespace mt
