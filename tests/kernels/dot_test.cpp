#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "base/matrix.h"
#include "kernels/kernels.h"
#include "kernels/random_rows.h"

// The fast path: rows_dot is the f64 product of the decoded weights with the activations, within
// f32 rounding and half a step of the activations' rounding to int8.
namespace mt {
namespace {

std::vector<Dtype> dot_formats() {
  std::vector<Dtype> formats;
  for (const DtypeInfo& format : all_dtypes())
    if (available_kernels().back()->has_rows_dot(format.dtype)) formats.push_back(format.dtype);
  return formats;
}

bool unquantised(Dtype t) {
  return t == Dtype::F32 || t == Dtype::F16 || t == Dtype::BF16;
}

std::vector<std::pair<const Kernels*, int>> tables_and_terms() {
  std::vector<std::pair<const Kernels*, int>> both;
  for (const Kernels* table : available_kernels())
    for (int terms : {1, 2}) both.push_back({table, terms});
  return both;
}

TEST(Dot, QuantisedActivationsAreTheSameInEveryTable) {
  std::mt19937 random(21);
  for (int64_t n : {32, 64, 96, 256, 288, 576, 1536}) {
    std::vector<float> x(static_cast<size_t>(n));
    for (size_t i = 0; i < x.size(); ++i)
      x[i] = std::normal_distribution<float>()(random) * std::pow(10.0f, float(i / 32 % 7) - 3.0f);
    for (size_t i = 0; i < 32; ++i) x[i] = n == 96 ? 0.0f : x[i];
    if (n == 288) x[40] = std::numeric_limits<float>::infinity();
    if (n == 288) x[70] = 1e-40f;
    for (int terms : {1, 2}) {
      const int64_t bytes = reference_kernels().quantised_bytes(n, terms);
      std::vector<std::byte> expected(size_t(bytes), std::byte{1}), got = expected;
      reference_kernels().quantise(x.data(), n, terms, expected.data());
      for (const Kernels* table : available_kernels()) {
        ASSERT_EQ(table->quantised_bytes(n, terms), bytes);
        std::fill(got.begin(), got.end(), std::byte{2});
        table->quantise(x.data(), n, terms, got.data());
        EXPECT_EQ(std::memcmp(expected.data(), got.data(), size_t(bytes)), 0)
            << table->name << " n=" << n << " terms " << terms;
      }
    }
  }
}

TEST(Dot, EveryFormatWithinItsBound) {
  std::mt19937 random(22);
  for (Dtype t : dot_formats()) {
    const DtypeInfo& format = info(t);
    for (int64_t length : {32, 64, 96, 128, 160, 192, 256, 384, 512, 576, 640, 1536}) {
      if (length % format.block_length != 0) continue;
      for (int64_t rows : {1, 3, 4, 5, 9, 18}) {
        int64_t row_size = row_bytes(t, length);
        std::vector<std::byte> filled = random_rows(random, t, rows * length / format.block_length);
        // Exactly the matrix's bytes on the heap, the sanitizer's fence behind them.
        std::unique_ptr<std::byte[]> w(new std::byte[filled.size()]);
        std::memcpy(w.get(), filled.data(), filled.size());
        std::vector<float> x(static_cast<size_t>(length)), row(static_cast<size_t>(length));
        for (float& v : x) v = std::normal_distribution<float>()(random);
        for (const auto& [table, terms] : tables_and_terms()) {
          if (!table->has_rows_dot(t)) continue;
          AlignedBuffer<std::byte> q(size_t(table->quantised_bytes(length, terms)));
          table->quantise(x.data(), length, terms, q.data());
          std::vector<float> y(static_cast<size_t>(rows) + 1, 77.0f);
          table->rows_dot(t, w.get(), row_size, rows, q.data(), 0, 1, terms, length, y.data(), 0);
          EXPECT_EQ(y.back(), 77.0f);
          for (int64_t r = 0; r < rows; ++r) {
            decode_row(t, w.get() + r * row_size, row.data(), length);
            double product = 0.0, magnitude = 0.0, rounding = 0.0;
            for (int64_t b = 0; b < length; b += 32) {
              double largest = 0.0;
              for (int64_t i = b; i < b + 32; ++i)
                largest = std::max(largest, std::fabs(double(x[size_t(i)])));
              for (int64_t i = b; i < b + 32; ++i) {
                double wi = row[size_t(i)], xi = x[size_t(i)];
                product += wi * xi;
                magnitude += std::fabs(wi * xi);
                rounding += std::fabs(wi) * largest / 254.0 / (terms == 2 ? kSecondSteps : 1);
              }
            }
            // Where a minimum is taken off, the two parts are summed apart: their rounding counts
            // the larger of them, within 64 times the weights here.
            double bound =
                (unquantised(t) ? 0.0 : rounding * 1.001) + 1e-5 * magnitude + 1e-5 * rounding;
            ASSERT_LE(std::fabs(double(y[size_t(r)]) - product), bound)
                << table->name << " " << format.name << " n=" << length << " row " << r << " of "
                << rows << " terms " << terms << ": " << y[size_t(r)] << ", f64 " << product;
          }
          // Against the reference's math the activations' rounding is no excuse.
          std::vector<float> expected(static_cast<size_t>(rows));
          reference_kernels().rows_dot(t, w.get(), row_size, rows, q.data(), 0, 1, terms, length,
                                       expected.data(), 0);
          for (int64_t r = 0; r < rows; ++r) {
            decode_row(t, w.get() + r * row_size, row.data(), length);
            double magnitude = 0.0;
            for (int64_t i = 0; i < length; ++i)
              magnitude += std::fabs(double(row[size_t(i)]) * double(x[size_t(i)]));
            ASSERT_NEAR(y[size_t(r)], expected[size_t(r)], 2e-6 * magnitude + 1e-30)
                << table->name << " " << format.name << " n=" << length << " row " << r;
          }
        }
      }
    }
  }
}

TEST(Dot, TokensTogetherGiveTheBitsOfEachAlone) {
  std::mt19937 random(29);
  constexpr int64_t kTokens = 7, kRows = 9, kLength = 768;
  for (Dtype t : dot_formats()) {
    const DtypeInfo& format = info(t);
    const int64_t row_size = row_bytes(t, kLength);
    std::vector<std::byte> w = random_rows(random, t, kRows * kLength / format.block_length);
    std::vector<float> x(kTokens * kLength);
    for (float& v : x) v = std::normal_distribution<float>()(random);
    for (const auto& [table, terms] : tables_and_terms()) {
      if (!table->has_rows_dot(t)) continue;
      const int64_t q_bytes = (table->quantised_bytes(kLength, terms) + 63) / 64 * 64,
                    ldy = kRows + 2;
      AlignedBuffer<std::byte> q(size_t(kTokens * q_bytes));
      for (int64_t i = 0; i < kTokens; ++i)
        table->quantise(x.data() + i * kLength, kLength, terms, q.data() + i * q_bytes);
      for (int64_t tokens : {2, 3, 5, 6, 7}) {
        std::vector<float> together(size_t(tokens * ldy), 77.0f), alone(kRows);
        table->rows_dot(t, w.data(), row_size, kRows, q.data(), q_bytes, tokens, terms, kLength,
                        together.data(), ldy);
        for (int64_t i = 0; i < tokens; ++i) {
          table->rows_dot(t, w.data(), row_size, kRows, q.data() + i * q_bytes, 0, 1, terms,
                          kLength, alone.data(), 0);
          const float* row = together.data() + i * ldy;
          EXPECT_EQ(std::memcmp(row, alone.data(), kRows * sizeof(float)), 0)
              << table->name << " " << format.name << " token " << i << " of " << tokens;
          EXPECT_EQ(row[kRows], 77.0f);
          EXPECT_EQ(row[kRows + 1], 77.0f);
        }
      }
    }
  }
}

TEST(Dot, InfiniteActivationsGiveNan) {
  std::vector<float> x(64, 1.0f);
  x[40] = std::numeric_limits<float>::infinity();
  std::mt19937 random(23);
  std::vector<std::byte> w = random_rows(random, Dtype::Q4_0, 2);
  for (const auto& [table, terms] : tables_and_terms()) {
    std::vector<std::byte> q(size_t(table->quantised_bytes(64, terms)));
    table->quantise(x.data(), 64, terms, q.data());
    float y = 0.0f;
    table->rows_dot(Dtype::Q4_0, w.data(), 36, 1, q.data(), 0, 1, terms, 64, &y, 0);
    EXPECT_TRUE(std::isnan(y)) << table->name;
  }
}

}  // namespace
}  // namespace mt
