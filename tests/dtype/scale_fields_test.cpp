#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "dtype/scale_fields.h"

namespace mt {
namespace {

// Any block is the sum of its fields, each times the block decoded with that field alone.
TEST(ScaleFields, BlocksAreLinearInThem) {
  std::mt19937 random(7);
  int with_fields = 0;
  for (const DtypeInfo& f : all_dtypes()) {
    const auto offsets = scale_offsets(f.dtype);
    if (offsets.empty()) continue;
    ++with_fields;
    for (int round = 0; round < 20; ++round) {
      std::vector<std::byte> block(static_cast<size_t>(f.block_bytes));
      for (auto& b : block) b = static_cast<std::byte>(random());
      std::vector<float> fields;
      for (size_t k = 0; k < offsets.size(); ++k) {
        ASSERT_LE(offsets[k] + 2, f.block_bytes) << f.name;
        const uint16_t half = float_to_half(0.01f + 0.1f * float(round) - 0.7f * float(k));
        std::memcpy(&block[static_cast<size_t>(offsets[k])], &half, 2);
        fields.push_back(half_to_float(half));
      }
      const auto n = static_cast<size_t>(f.block_length);
      std::vector<float> whole(n), alone(n);
      decode_row(f.dtype, block.data(), whole.data(), f.block_length);
      std::vector<double> sum(n), magnitude(n);
      for (size_t k = 0; k < offsets.size(); ++k) {
        std::vector<std::byte> one = block;
        isolate_field(f.dtype, k, one);
        decode_row(f.dtype, one.data(), alone.data(), f.block_length);
        for (size_t i = 0; i < n; ++i) {
          sum[i] += double(fields[k]) * double(alone[i]);
          magnitude[i] += std::fabs(double(fields[k]) * double(alone[i]));
        }
      }
      for (size_t i = 0; i < n; ++i)
        ASSERT_NEAR(double(whole[i]), sum[i], 1e-6 * magnitude[i] + 1e-12) << f.name << " " << i;
    }
  }
  EXPECT_EQ(with_fields, 22);
}

// A weight of sub-block s is the sum over fields of field * scale s * what isolate_levels decodes.
TEST(ScaleFields, WeightsAreLinearInTheScalesOfTheirSubBlock) {
  std::mt19937 random(8);
  int with_scales = 0;
  for (const DtypeInfo& f : all_dtypes()) {
    const SubScales subs = sub_scales(f.dtype);
    if (subs.count == 0) continue;
    ++with_scales;
    EXPECT_EQ(subs.count * subs.length, f.block_length) << f.name;
    const auto offsets = scale_offsets(f.dtype);
    ASSERT_LE(std::ssize(offsets) * subs.count, kMostSubScales) << f.name;
    for (int round = 0; round < 20; ++round) {
      std::vector<std::byte> block(static_cast<size_t>(f.block_bytes));
      for (auto& b : block) b = static_cast<std::byte>(random());
      const uint16_t half[2] = {float_to_half(0.013f), float_to_half(-0.7f)};
      for (size_t k = 0; k < offsets.size(); ++k)
        std::memcpy(&block[static_cast<size_t>(offsets[k])], &half[k], 2);
      int scales[kMostSubScales];
      read_sub_scales(f.dtype, block.data(), scales);
      const auto n = static_cast<size_t>(f.block_length);
      std::vector<float> whole(n), levels(n);
      std::vector<double> sum(n), magnitude(n);
      decode_row(f.dtype, block.data(), whole.data(), f.block_length);
      for (size_t k = 0; k < offsets.size(); ++k) {
        std::vector<std::byte> one = block;
        isolate_levels(f.dtype, k, one);
        decode_row(f.dtype, one.data(), levels.data(), f.block_length);
        for (size_t i = 0; i < n; ++i) {
          const size_t s = k * size_t(subs.count) + i / size_t(subs.length);
          const double part = double(half_to_float(half[k])) * scales[s] * double(levels[i]);
          sum[i] += part;
          magnitude[i] += std::fabs(part);
        }
      }
      for (size_t i = 0; i < n; ++i)
        ASSERT_NEAR(double(whole[i]), sum[i], 1e-6 * magnitude[i] + 1e-12) << f.name << " " << i;
    }
  }
  EXPECT_EQ(with_scales, 6);
}

TEST(ScaleFields, ScalesOfSubBlocksAreWrittenAndNothingElse) {
  std::mt19937 random(9);
  for (const DtypeInfo& f : all_dtypes()) {
    const SubScales subs = sub_scales(f.dtype);
    if (subs.count == 0) continue;
    const size_t n = size_t(subs.count) * scale_offsets(f.dtype).size();
    for (int round = 0; round < 20; ++round) {
      std::vector<std::byte> block(static_cast<size_t>(f.block_bytes));
      for (auto& b : block) b = static_cast<std::byte>(random());
      const std::vector<std::byte> before = block;
      int was[kMostSubScales], wanted[kMostSubScales], is[kMostSubScales];
      read_sub_scales(f.dtype, block.data(), was);
      for (size_t i = 0; i < n; ++i) {
        ASSERT_TRUE(was[i] >= subs.low && was[i] <= subs.high) << f.name;
        wanted[i] = subs.low + int(random() % unsigned(subs.high - subs.low + 1));
      }
      wanted[0] = subs.low;
      wanted[n - 1] = subs.high;
      write_sub_scales(f.dtype, wanted, block.data());
      read_sub_scales(f.dtype, block.data(), is);
      for (size_t i = 0; i < n; ++i) ASSERT_EQ(is[i], wanted[i]) << f.name << " " << i;
      write_sub_scales(f.dtype, was, block.data());
      ASSERT_EQ(block, before) << f.name;
    }
  }
}

}  // namespace
}  // namespace mt
