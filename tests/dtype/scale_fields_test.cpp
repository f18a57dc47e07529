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

}  // namespace
}  // namespace mt
