#include "run/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "kernels/amx.h"
#include "kernels/random_rows.h"

// The fast path's products beside the exact ones, format by format.
namespace mt {
namespace {

LinearMap random_map(Dtype t, int64_t rows, int64_t cols, unsigned seed) {
  std::mt19937 random(seed);
  LinearMap map;
  map.weight.rows = rows;
  map.weight.cols = cols;
  map.weight.dtype = t;
  auto bytes = std::make_shared<std::vector<std::byte>>(
      random_rows(random, t, rows * cols / info(t).block_length));
  map.weight.data = {bytes, *bytes};
  map.bias.resize(size_t(rows));
  for (float& b : map.bias) b = std::normal_distribution<float>()(random);
  return map;
}

TEST(Linear, TilesGiveTheBf16Product) {
  ThreadPool three(3);
  const Kernels& best = *available_kernels().back();
  Kernels with_tiles = best;
  with_tiles.gemm_tiles = plain_tiles_gemm_pairs;
  for (Dtype t : {Dtype::Q4_0, Dtype::Q6_K, Dtype::F16})
    for (int64_t n : {31, 32, 70}) {
      const LinearMap map = random_map(t, 70, 768, 41);
      std::mt19937 random(44);
      MatrixBuffer x(n, 768), y(n, 70), fast(n, 70), expected(n, 70);
      for (int64_t i = 0; i < n * 768; ++i) x.data()[i] = std::normal_distribution<float>()(random);
      matmul({with_tiles, three}, Path::fast, x, map, y);
      matmul({best, three}, Path::fast, x, map, fast);
      matmul({best, three}, Path::bf16, x, map, expected);
      double error = 0, power = 0;
      for (int64_t i = 0; i < n * 70; ++i) {
        error += std::pow(double(y.data()[i]) - double(expected.data()[i]), 2);
        power += std::pow(double(expected.data()[i]), 2);
      }
      if (n < 32)
        EXPECT_EQ(std::memcmp(y.data(), fast.data(), size_t(n * 70) * sizeof(float)), 0);
      else
        EXPECT_LT(std::sqrt(error / power), 1e-6) << name(t) << " n=" << n;
    }
}

TEST(Linear, FastIsNearTheExactPathAndTheSameForAnyThreads) {
  ThreadPool one(1), three(3);
  for (Dtype t : {Dtype::Q8_0, Dtype::Q4_0, Dtype::Q5_0, Dtype::Q4_1, Dtype::Q5_1, Dtype::IQ4_NL,
                  Dtype::Q4_K, Dtype::Q5_K, Dtype::Q6_K, Dtype::Q3_K, Dtype::Q2_K, Dtype::IQ4_XS,
                  Dtype::MXFP4, Dtype::IQ2_S, Dtype::F16})
    for (int64_t n : {1, 2, 3, 8, 9, 37}) {
      // Two maps of one input, the second in another format: each takes its own way.
      const int64_t cols = 768;
      const LinearMap first = random_map(t, 70, cols, 41);
      const LinearMap second = random_map(n == 9 ? Dtype::F32 : t, 33, cols, 42);
      std::mt19937 random(43);
      MatrixBuffer x(n, cols);
      for (int64_t i = 0; i < n * cols; ++i)
        x.data()[i] = std::normal_distribution<float>()(random);
      MatrixBuffer exact(n, 70), y(n, 70), z(n, 33), again(n, 70), z_again(n, 33);
      for (const Kernels* table : available_kernels()) {
        const Runtime rt{*table, three}, alone{*table, one};
        const MapOutput both[] = {{first, y}, {second, z}};
        const MapOutput both_again[] = {{first, again}, {second, z_again}};
        matmul(rt, Path::exact, x, first, exact);
        matmul_shared(rt, Path::fast, x, both);
        matmul_shared(alone, Path::fast, x, both_again);
        // Activations are rounded by at most 1/254 of the largest of 32, independently: relative
        // RMS 1/254 / sqrt(3) * (largest / RMS = about 2.1 for normal values). Q2_K and IQ2_S,
        // rounded to 8 bits too, lie below twice that, as do products of bf16 values.
        double error = 0, power = 0;
        for (int64_t i = 0; i < n * 70; ++i) {
          const double bias = first.bias[size_t(i % 70)];
          error += std::pow(double(y.data()[i]) - double(exact.data()[i]), 2);
          power += std::pow(double(exact.data()[i]) - bias, 2);
        }
        EXPECT_LT(std::sqrt(error / power), 2 * 2.1 / 254 / std::sqrt(3.0))
            << table->name << " " << name(t) << " n=" << n;
        EXPECT_EQ(std::memcmp(y.data(), again.data(), size_t(n * 70) * 4), 0) << name(t);
        EXPECT_EQ(std::memcmp(z.data(), z_again.data(), size_t(n * 33) * 4), 0) << name(t);
      }
    }
}

TEST(Linear, TwoTermsAreFarNearerToTheExactPath) {
  ThreadPool one(1), three(3);
  const int64_t cols = 768;
  for (Dtype t : {Dtype::Q8_0, Dtype::Q6_K, Dtype::Q4_1})
    for (int64_t n : {1, 2, 3, 37}) {
      const LinearMap map = random_map(t, 70, cols, 41),
                      plain = random_map(Dtype::F16, 33, cols, 42);
      std::mt19937 random(45);
      MatrixBuffer x(n, cols), exact(n, 70), y(n, 70), near(n, 70), again(n, 70);
      MatrixBuffer z(n, 33), z_near(n, 33), z_again(n, 33);
      for (int64_t i = 0; i < n * cols; ++i)
        x.data()[i] = std::normal_distribution<float>()(random);
      auto distance = [&](const MatrixBuffer& m) {
        double error = 0;
        for (int64_t i = 0; i < n * 70; ++i)
          error += std::pow(double(m.data()[i]) - double(exact.data()[i]), 2);
        return std::sqrt(error);
      };
      for (const Kernels* table : available_kernels()) {
        const Runtime rt{*table, three}, alone{*table, one};
        const MapOutput both[] = {{map, y}, {plain, z}},
                        both_near[] = {{map, near}, {plain, z_near}};
        const MapOutput both_again[] = {{map, again}, {plain, z_again}};
        matmul(rt, Path::exact, x, map, exact);
        matmul_shared(rt, Path::fast, x, both);
        matmul_shared(rt, Path::fast, x, both_near, {.two_terms = true});
        matmul_shared(alone, Path::fast, x, both_again, {.two_terms = true});
        if (int8_kernels(*table)) {
          EXPECT_GT(distance(y), 0);
        }
        // A 128th of the rounding is left, and that of f32 sums.
        EXPECT_LE(30 * distance(near), distance(y)) << table->name << " " << name(t) << " n=" << n;
        EXPECT_EQ(std::memcmp(near.data(), again.data(), size_t(n * 70) * 4), 0)
            << table->name << " " << name(t) << " n=" << n;
        EXPECT_EQ(std::memcmp(z.data(), z_near.data(), size_t(n * 33) * 4), 0) << table->name;
      }
    }
}

TEST(Linear, LikeSingleGivesEveryTokenWhatItGetsAlone) {
  ThreadPool three(3);
  const int64_t cols = 768, n = 11;
  for (Dtype t :
       {Dtype::Q8_0, Dtype::Q4_0, Dtype::Q5_0, Dtype::Q4_1, Dtype::Q5_1, Dtype::IQ4_NL, Dtype::Q4_K,
        Dtype::Q5_K, Dtype::Q6_K, Dtype::Q3_K, Dtype::Q2_K, Dtype::IQ4_XS, Dtype::MXFP4,
        Dtype::IQ2_S, Dtype::IQ3_XXS, Dtype::F16, Dtype::BF16, Dtype::F32}) {
    // Rows of several pieces, and some that are left over.
    const LinearMap first = random_map(t, 451, cols, 41);
    const LinearMap second = random_map(t == Dtype::Q8_0 ? Dtype::F32 : t, 33, cols, 42);
    std::mt19937 random(43);
    MatrixBuffer x(n, cols), y(n, 451), z(n, 33), y1(1, 451), z1(1, 33);
    for (int64_t i = 0; i < n * cols; ++i) x.data()[i] = std::normal_distribution<float>()(random);
    for (const Kernels* table : available_kernels())
      for (const auto& [path, two_terms] :
           {std::pair{Path::fast, false}, std::pair{Path::fast, true},
            std::pair{Path::exact, false}, std::pair{Path::bf16, false}}) {
        if (path == Path::exact && table->name != select_kernels().name) continue;
        const Runtime rt{*table, three};
        const MapOutput both[] = {{first, y}, {second, z}};
        matmul_shared(rt, path, x, both, {.like_single = true, .two_terms = two_terms});
        for (int64_t token = 0; token < n; ++token) {
          const MapOutput alone[] = {{first, y1}, {second, z1}};
          matmul_shared(rt, path, x.view().slice_rows(token, token + 1), alone,
                        {.two_terms = two_terms});
          EXPECT_EQ(std::memcmp(y.row(token), y1.data(), 451 * 4), 0)
              << table->name << " " << name(t) << " token " << token;
          EXPECT_EQ(std::memcmp(z.row(token), z1.data(), 33 * 4), 0) << table->name << name(t);
        }
      }
  }
}

}  // namespace
}  // namespace mt
