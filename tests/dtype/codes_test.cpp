#include "dtype/codes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace mt {
namespace {

std::vector<std::byte> random_block(const DtypeInfo& f, std::mt19937& random) {
  std::vector<std::byte> block(static_cast<size_t>(f.block_bytes));
  for (auto& b : block) b = static_cast<std::byte>(random());
  return block;
}

// Whatever the bytes, scales, offsets and codes say what the decoder says.
TEST(Codes, SayWhatTheDecoderSays) {
  std::mt19937 random(11);
  int formats = 0;
  for (const DtypeInfo& f : all_dtypes()) {
    const Levels* levels = levels_of(f.dtype);
    if (!levels) continue;
    ++formats;
    for (int round = 0; round < 50; ++round) {
      auto block = random_block(f, random);
      std::vector<float> values(static_cast<size_t>(f.block_length));
      decode_row(f.dtype, block.data(), values.data(), f.block_length);
      BlockCodes b;
      read_codes(f.dtype, block.data(), b);
      ASSERT_EQ(b.length, f.block_length) << f.name;
      for (int i = 0; i < b.length; ++i) {
        const float value = b.offset[i / b.sub] + b.scale[i / b.sub] * levels->value(b.code[i]);
        const float decoded = values[static_cast<size_t>(i)];
        if (!std::isfinite(decoded)) continue;
        ASSERT_NEAR(value, decoded, 1e-6f * std::fabs(decoded) + 1e-30f) << f.name << " " << i;
      }
      auto copy = block;
      write_codes(f.dtype, b.code, copy.data());
      ASSERT_EQ(copy, block) << f.name;
    }
  }
  EXPECT_EQ(formats, 16);
}

TEST(Codes, OthersComeBackAndLeaveTheScales) {
  std::mt19937 random(12);
  for (const DtypeInfo& f : all_dtypes()) {
    const Levels* levels = levels_of(f.dtype);
    if (!levels) continue;
    auto block = random_block(f, random);
    BlockCodes before, after;
    read_codes(f.dtype, block.data(), before);
    std::vector<uint8_t> code(256);
    for (auto& c : code) c = static_cast<uint8_t>(random() % static_cast<unsigned>(levels->count));
    write_codes(f.dtype, code.data(), block.data());
    read_codes(f.dtype, block.data(), after);
    for (int i = 0; i < after.length; ++i)
      ASSERT_EQ(after.code[i], code[static_cast<size_t>(i)]) << f.name << " " << i;
    for (int s = 0; s < after.length / after.sub; ++s) {
      EXPECT_TRUE(after.scale[s] == before.scale[s] || std::isnan(after.scale[s])) << f.name;
      EXPECT_TRUE(after.offset[s] == before.offset[s] || std::isnan(after.offset[s])) << f.name;
    }
  }
}

TEST(Codes, NearestIsNearest) {
  std::mt19937 random(13);
  std::uniform_real_distribution<float> near(-140, 140);
  for (const DtypeInfo& f : all_dtypes()) {
    const Levels* levels = levels_of(f.dtype);
    if (!levels) continue;
    EXPECT_EQ(levels->nearest(NAN), levels->nearest(-1e30f)) << f.name;
    for (int round = 0; round < 500; ++round) {
      const float y = near(random) * (round % 2 ? 1.0f : 0.05f);
      float best = 1e9f;
      // MXFP4 has a code more than levels: zero twice.
      const int codes = f.dtype == Dtype::MXFP4 ? 16 : levels->count;
      for (int c = 0; c < codes; ++c) {
        best = std::min(best, std::fabs(levels->value(static_cast<uint8_t>(c)) - y));
      }
      ASSERT_EQ(std::fabs(levels->value(levels->nearest(y)) - y), best) << f.name << " " << y;
    }
  }
}

}  // namespace
}  // namespace mt
