#include "kernels/int8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "base/matrix.h"
#include "kernels/random_rows.h"

// The batched int8 product: panels and rounded activations are the same bits in every table; the
// product is the f64 one of the decoded weights within half a step of the rounding.
namespace mt {
namespace {

std::vector<Dtype> int8_formats() {
  return {Dtype::Q4_0,   Dtype::Q4_1,    Dtype::Q5_0,   Dtype::Q5_1,  Dtype::Q8_0,   Dtype::Q2_K,
          Dtype::Q3_K,   Dtype::Q4_K,    Dtype::Q5_K,   Dtype::Q6_K,  Dtype::IQ4_NL, Dtype::IQ4_XS,
          Dtype::MXFP4,  Dtype::Q1_0,    Dtype::Q2_0,   Dtype::TQ2_0, Dtype::IQ2_S,  Dtype::IQ3_S,
          Dtype::IQ2_XS, Dtype::IQ2_XXS, Dtype::IQ3_XXS};
}

std::vector<const Int8Kernels*> int8_tables() {
  std::vector<const Int8Kernels*> tables = {&reference_int8_kernels()};
  for (const Kernels* table : available_kernels())
    if (const Int8Kernels* k = int8_kernels(*table); k && k != tables.back()) tables.push_back(k);
  return tables;
}

std::vector<std::pair<const Int8Kernels*, int>> tables_and_terms() {
  std::vector<std::pair<const Int8Kernels*, int>> both;
  for (const Int8Kernels* table : int8_tables())
    for (int terms : {1, 2}) both.push_back({table, terms});
  return both;
}

// Exactly the bytes on the heap, the sanitizer's fence behind them.
std::unique_ptr<std::byte[]> fenced(const std::vector<std::byte>& bytes) {
  std::unique_ptr<std::byte[]> copy(new std::byte[bytes.size()]);
  std::memcpy(copy.get(), bytes.data(), bytes.size());
  return copy;
}

TEST(Int8, TakesEveryQuantisedFormatThatDecodes) {
  for (const DtypeInfo& format : all_dtypes())
    if (format.decodes) {
      EXPECT_EQ(int8_takes(format.dtype), format.block_length > 1) << format.name;
    }
}

TEST(Int8, PanelsAreTheSameInEveryTable) {
  std::mt19937 random(31);
  for (Dtype t : int8_formats())
    for (int64_t depth : {int64_t{256}, info(t).block_length})
      for (int64_t rows : {1, 5, 31, 32}) {
        const auto w = fenced(random_rows(random, t, rows * depth / info(t).block_length));
        auto expected = std::make_unique<Int8Panel>(), got = std::make_unique<Int8Panel>();
        reference_int8_kernels().pack(t, w.get(), row_bytes(t, depth), rows, depth, *expected);
        for (const Int8Kernels* table : int8_tables()) {
          std::memset(static_cast<void*>(got.get()), 0x5a, sizeof(Int8Panel));
          table->pack(t, w.get(), row_bytes(t, depth), rows, depth, *got);
          const size_t groups = size_t(depth / (expected->by_16 ? 16 : 32));
          ASSERT_EQ(got->by_16, expected->by_16);
          ASSERT_EQ(got->has_min, expected->has_min);
          ASSERT_EQ(got->largest, expected->largest);
          EXPECT_EQ(std::memcmp(got->codes, expected->codes, size_t(depth) * 32), 0) << name(t);
          EXPECT_EQ(std::memcmp(got->scale, expected->scale, groups * 128), 0) << name(t);
          EXPECT_EQ(std::memcmp(got->start, expected->start, groups * 128), 0) << name(t);
          if (!expected->has_min) continue;
          EXPECT_EQ(std::memcmp(got->min, expected->min, groups * 128), 0) << name(t);
        }
      }
}

TEST(Int8, PanelsHoldTheWeights) {
  std::mt19937 random(32);
  for (Dtype t : int8_formats()) {
    const int64_t depth = 256, rows = 32;
    const auto w = random_rows(random, t, rows * depth / info(t).block_length);
    auto panel = std::make_unique<Int8Panel>();
    reference_int8_kernels().pack(t, w.data(), row_bytes(t, depth), rows, depth, *panel);
    for (int64_t r = 0; r < rows; ++r) {
      std::vector<float> row(static_cast<size_t>(depth));
      decode_row(t, w.data() + r * row_bytes(t, depth), row.data(), depth);
      for (int64_t i = 0; i < depth; ++i) {
        double got =
            double(panel->scale[i / (panel->by_16 ? 16 : 32)][r]) * panel->codes[i / 4][r][i % 4];
        double largest = std::fabs(got), bound = 0;
        if (panel->has_min) got += double(panel->min[i / 32][r]);
        if (!int8_own_codes(t))
          for (int64_t j = i / 32 * 32; j < i / 32 * 32 + 32; ++j)
            bound = std::max(bound, std::fabs(double(row[size_t(j)])) / 254);
        ASSERT_NEAR(got, row[size_t(i)], bound * 1.001 + 1e-6 * largest) << name(t) << " " << i;
      }
    }
  }
}

// A product of a code and an activation may be as large as that: AVX2 adds some in 16 bits.
TEST(Int8, CodesAreAtMostAsLargeAsSaid) {
  std::mt19937 random(36);
  auto panel = std::make_unique<Int8Panel>();
  for (Dtype t : int8_formats()) {
    int found = 0;
    for (int round = 0; round < 20; ++round) {
      const auto w = random_rows(random, t, 32 * 256 / info(t).block_length);
      reference_int8_kernels().pack(t, w.data(), row_bytes(t, 256), 32, 256, *panel);
      for (const auto& word : panel->codes)
        for (const auto& row : word)
          for (int code : row) found = std::max(found, std::abs(code));
    }
    EXPECT_LE(found, panel->largest) << name(t);
    if (panel->largest < 100) {
      EXPECT_EQ(found, panel->largest) << name(t);
    }
  }
}

// The activation and the code that are largest, all along: sums must not saturate.
TEST(Int8, TheLargestProductsAreExact) {
  for (Dtype t : {Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_0, Dtype::Q5_1, Dtype::Q8_0})
    for (int filling : {0x00, 0xff, 0x7f, 0x80}) {
      std::vector<std::byte> w(static_cast<size_t>(info(t).block_bytes),
                               static_cast<std::byte>(filling));
      w[0] = std::byte{0x00}, w[1] = std::byte{0x3c};  // a scale of 1
      if (t == Dtype::Q4_1 || t == Dtype::Q5_1) w[2] = w[3] = std::byte{0};
      for (float sign : {1.0f, -1.0f}) {
        std::vector<float> x(32, sign * 127), row(32);
        decode_row(t, w.data(), row.data(), 32);
        double expected = 0;
        for (int i = 0; i < 32; ++i) expected += double(row[size_t(i)]) * double(x[size_t(i)]);
        for (const auto& [table, terms] : tables_and_terms()) {
          auto panel = std::make_unique<Int8Panel>();
          AlignedBuffer<Int8Block> rounded(2);
          table->pack(t, w.data(), info(t).block_bytes, 1, 32, *panel);
          table->quantise(x.data(), 32, 1, 32, terms, rounded.data());
          float y = 0;
          table->multiply(*panel, 32, rounded.data(), terms, 1, &y, 1, 1, false);
          EXPECT_EQ(double(y), expected) << name(t) << " " << filling;
        }
      }
    }
}

TEST(Int8, ActivationsAreTheSameInEveryTable) {
  std::mt19937 random(33);
  const int64_t n = 96, ldx = 100;
  std::vector<float> x(size_t(6 * ldx));
  for (float& v : x) v = std::normal_distribution<float>()(random);
  std::fill_n(x.begin() + 32, 32, 0.0f);
  x[size_t(ldx)] = std::numeric_limits<float>::infinity();
  x[size_t(2 * ldx)] = 1e-40f;
  for (int64_t rows : {1, 4, 6}) {
    for (const auto& [table, terms] : tables_and_terms()) {
      const size_t blocks = 3 * size_t(terms);
      AlignedBuffer<Int8Block> expected(blocks), got(blocks);
      reference_int8_kernels().quantise(x.data(), ldx, rows, n, terms, expected.data());
      std::memset(static_cast<void*>(got.data()), 0x5a, blocks * sizeof(Int8Block));
      table->quantise(x.data(), ldx, rows, n, terms, got.data());
      for (size_t b = 0; b < blocks; ++b)
        EXPECT_EQ(std::memcmp(&got[b], &expected[b], offsetof(Int8Block, unused)), 0);
    }
  }
}

TEST(Int8, ProductsAreWithinTheirBound) {
  std::mt19937 random(34);
  for (Dtype t : int8_formats())
    for (int64_t depth : {int64_t{256}, info(t).block_length})
      for (int64_t n : {1, 15, 16, 17, 32})
        for (int64_t rows : {1, 5, 6}) {
          const auto w = random_rows(random, t, n * depth / info(t).block_length);
          std::vector<float> x(size_t(rows * depth)), row(static_cast<size_t>(depth));
          for (float& v : x) v = std::normal_distribution<float>()(random);
          for (const auto& [table, terms] : tables_and_terms()) {
            auto panel = std::make_unique<Int8Panel>();
            AlignedBuffer<Int8Block> rounded(size_t(depth / 32 * terms));
            table->pack(t, w.data(), row_bytes(t, depth), n, depth, *panel);
            table->quantise(x.data(), depth, rows, depth, terms, rounded.data());
            const int64_t ldy = n + 1;
            std::vector<float> y(size_t(rows * ldy), 77.0f);
            table->multiply(*panel, depth, rounded.data(), terms, rows, y.data(), ldy, n, false);
            std::vector<float> twice = y;
            table->multiply(*panel, depth, rounded.data(), terms, rows, twice.data(), ldy, n, true);
            for (int64_t o = 0; o < n; ++o) {
              decode_row(t, w.data() + o * row_bytes(t, depth), row.data(), depth);
              for (int64_t r = 0; r < rows; ++r) {
                double product = 0, magnitude = 0, rounding = 0;
                for (int64_t b = 0; b < depth; b += 32) {
                  double largest_x = 0, largest_w = 0;
                  for (int64_t i = b; i < b + 32; ++i) {
                    largest_x = std::max(largest_x, std::fabs(double(x[size_t(r * depth + i)])));
                    largest_w = std::max(largest_w, std::fabs(double(row[size_t(i)])));
                  }
                  for (int64_t i = b; i < b + 32; ++i) {
                    const double wi = row[size_t(i)], xi = x[size_t(r * depth + i)];
                    product += wi * xi;
                    magnitude += std::fabs(wi * xi);
                    rounding += std::fabs(wi) * largest_x / 254 / (terms == 2 ? kSecondSteps : 1);
                    if (!int8_own_codes(t)) rounding += largest_w / 254 * std::fabs(xi) * 1.01;
                  }
                }
                const double bound = rounding * 1.001 + 1e-5 * (magnitude + rounding);
                const double got = y[size_t(r * ldy + o)];
                ASSERT_LE(std::fabs(got - product), bound)
                    << name(t) << " terms " << terms << " depth " << depth << " output " << o
                    << " of " << n << " token " << r << ": " << got << ", f64 " << product;
                ASSERT_NEAR(twice[size_t(r * ldy + o)], 2 * got, 1e-5 * (magnitude + rounding));
              }
            }
            for (int64_t r = 0; r < rows; ++r) EXPECT_EQ(y[size_t(r * ldy + n)], 77.0f);
          }
        }
}

// Sums are whole numbers, scaled and added in one order: tables of instructions give the same bits.
TEST(Int8, InstructionSetsGiveTheSameBits) {
  std::mt19937 random(37);
  const std::vector<const Int8Kernels*> tables = int8_tables();
  for (Dtype t : int8_formats())
    for (int terms : {1, 2}) {
      const auto w = random_rows(random, t, 32 * 256 / info(t).block_length);
      std::vector<float> x(6 * 256), expected;
      for (float& v : x) v = std::normal_distribution<float>()(random);
      for (size_t i = 1; i < tables.size(); ++i) {
        auto panel = std::make_unique<Int8Panel>();
        AlignedBuffer<Int8Block> rounded(size_t(8 * terms));
        tables[i]->pack(t, w.data(), row_bytes(t, 256), 32, 256, *panel);
        tables[i]->quantise(x.data(), 256, 6, 256, terms, rounded.data());
        std::vector<float> y(6 * 32);
        tables[i]->multiply(*panel, 256, rounded.data(), terms, 6, y.data(), 32, 32, false);
        if (i == 1) expected = y;
        EXPECT_EQ(std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)), 0)
            << name(t) << " terms " << terms;
      }
    }
}

TEST(Int8, InfiniteActivationsGiveNanForTheirTokenAlone) {
  std::mt19937 random(35);
  std::vector<float> x(64, 1.0f);
  x[40] = std::numeric_limits<float>::infinity();
  const auto w = random_rows(random, Dtype::Q4_0, 1);
  for (const auto& [table, terms] : tables_and_terms()) {
    auto panel = std::make_unique<Int8Panel>();
    AlignedBuffer<Int8Block> rounded(2);
    table->pack(Dtype::Q4_0, w.data(), 18, 1, 32, *panel);
    table->quantise(x.data(), 32, 2, 32, terms, rounded.data());
    float y[2];
    table->multiply(*panel, 32, rounded.data(), terms, 2, y, 1, 1, false);
    EXPECT_TRUE(std::isfinite(y[0]));
    EXPECT_TRUE(std::isnan(y[1]));
  }
}

}  // namespace
}  // namespace mt
