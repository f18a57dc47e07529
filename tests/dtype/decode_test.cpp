#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "base/error.h"
#include "dtype/dtype.h"

namespace mt {
namespace {

TEST(Decode, EqualsAnIndependentReaderBitForBit) {
  std::ifstream in(MT_TEST_DATA "/dtype_blocks.bin", std::ios::binary);
  const std::vector<char> file((std::istreambuf_iterator<char>(in)), {});
  ASSERT_GT(file.size(), 1000u);
  std::set<Dtype> seen;
  for (size_t at = 0; at < file.size();) {
    uint32_t head[3];
    ASSERT_LE(at + sizeof head, file.size());
    std::memcpy(head, &file[at], sizeof head);
    at += sizeof head;
    ASSERT_LE(at + head[1] + 4ull * head[2], file.size());
    const auto dtype = dtype_from_number(head[0]);
    ASSERT_TRUE(dtype.has_value()) << head[0];
    ASSERT_EQ(row_bytes(*dtype, head[2]), head[1]);
    // One byte off alignment, and an exact copy so that a read past the end is caught by ASan.
    std::vector<std::byte> bytes(head[1] + 1);
    std::memcpy(bytes.data() + 1, &file[at], head[1]);
    at += head[1];
    std::vector<float> expected(head[2]), got(head[2]);
    std::memcpy(expected.data(), &file[at], 4ull * head[2]);
    at += 4ull * head[2];
    decode_row(*dtype, bytes.data() + 1, got.data(), head[2]);
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(expected[i]))
          << name(*dtype) << " weight " << i << ": " << got[i] << " and " << expected[i];
    }
    seen.insert(*dtype);
  }
  for (const DtypeInfo& f : all_dtypes()) {
    const bool plain = f.dtype == Dtype::F32 || f.dtype == Dtype::F64;
    EXPECT_EQ(seen.contains(f.dtype), f.decodes && !plain) << f.name;
  }
}

TEST(Decode, PlainFormats) {
  const double wide[] = {1.5, -1e300, 3.0e-60, std::nan(""), 3.4028235677973366e38};
  float narrow[5];
  decode_row(Dtype::F64, reinterpret_cast<const std::byte*>(wide), narrow, 5);
  EXPECT_EQ(narrow[0], 1.5f);
  EXPECT_EQ(narrow[1], -std::numeric_limits<float>::infinity());
  EXPECT_EQ(narrow[2], 0.0f);
  EXPECT_TRUE(std::isnan(narrow[3]));
  EXPECT_EQ(narrow[4], std::numeric_limits<float>::infinity());
  const float same[] = {0.1f, -2.0f};
  float out[2];
  decode_row(Dtype::F32, reinterpret_cast<const std::byte*>(same), out, 2);
  EXPECT_EQ(out[0], 0.1f);
  EXPECT_EQ(out[1], -2.0f);
}

TEST(Decode, AnyBytesAreReadWithinTheirBounds) {
  std::mt19937 random(7);
  for (const DtypeInfo& f : all_dtypes()) {
    if (!f.decodes) continue;
    for (int round = 0; round < 50; ++round) {
      const int64_t n = f.block_length * (1 + static_cast<int64_t>(random() % 3));
      std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(f.dtype, n)));
      for (auto& b : bytes) b = round == 0 ? std::byte{255} : static_cast<std::byte>(random());
      std::vector<float> out(static_cast<size_t>(n) + 1, 12345.0f);
      decode_row(f.dtype, bytes.data(), out.data(), n);
      EXPECT_EQ(out.back(), 12345.0f) << f.name;
    }
  }
}

TEST(Half, AllPatternsSurviveBothWays) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float value = half_to_float(static_cast<uint16_t>(h));
    if ((h & 0x7fffu) > 0x7c00u) {
      EXPECT_TRUE(std::isnan(value));
      continue;
    }
    EXPECT_EQ(float_to_half(value), h);
    EXPECT_EQ(float_to_bf16(bf16_to_float(static_cast<uint16_t>(h))), h);
  }
}

TEST(Half, RoundsToTheNearestAndTiesToEven) {
  // Independent of the bit tricks: the neighbours on either side, by their values.
  std::mt19937 random(3);
  for (int i = 0; i < 200000; ++i) {
    const uint32_t low = random() % 0x7bffu;
    const double a = half_to_float(static_cast<uint16_t>(low));
    const double b = half_to_float(static_cast<uint16_t>(low + 1));
    const double t = i % 5 == 0 ? 0.5 : (random() % 4096) / 4096.0;
    const auto x = static_cast<float>(a + t * (b - a));
    const double to_a = x - a, to_b = b - x;
    const uint32_t want = to_a < to_b ? low : to_b < to_a ? low + 1 : low + low % 2;
    ASSERT_EQ(float_to_half(x), want) << x;
    ASSERT_EQ(float_to_half(-x), want | 0x8000u) << x;
  }
  EXPECT_EQ(float_to_half(65519.9f), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_bf16(std::numeric_limits<float>::infinity()), 0x7f80);
}

TEST(Dtype, TableIsConsistent) {
  uint32_t previous = 0;
  for (const DtypeInfo& f : all_dtypes()) {
    const auto number = static_cast<uint32_t>(f.dtype);
    EXPECT_TRUE(number > previous || number == 0) << f.name;
    previous = number;
    EXPECT_EQ(dtype_from_number(number), f.dtype);
    EXPECT_EQ(dtype_from_name(f.name), f.dtype);
    EXPECT_EQ(&info(f.dtype), &f);
    EXPECT_EQ(row_bytes(f.dtype, 4 * f.block_length), 4 * f.block_bytes);
  }
  EXPECT_EQ(dtype_from_name("iq4_nl"), Dtype::IQ4_NL);
  EXPECT_EQ(dtype_from_name("Q4_K"), Dtype::Q4_K);
  EXPECT_EQ(dtype_from_name("q4_k_m"), std::nullopt);
  EXPECT_EQ(dtype_from_name(""), std::nullopt);
  for (uint32_t unknown : {4u, 5u, 9u, 15u, 31u, 36u, 38u, 43u, 4000000000u}) {
    EXPECT_EQ(dtype_from_number(unknown), std::nullopt) << unknown;
    EXPECT_THROW(info(static_cast<Dtype>(unknown)), Error);
  }
  EXPECT_DOUBLE_EQ(info(Dtype::Q4_0).bits_per_weight(), 4.5);
  EXPECT_DOUBLE_EQ(info(Dtype::Q6_K).bits_per_weight(), 6.5625);
  float unused[1] = {};
  std::byte none[8] = {};
  EXPECT_THROW(decode_row(Dtype::I32, none, unused, 1), Error);
  EXPECT_THROW(encode_row(Dtype::IQ1_S, unused, nullptr, none, 256), Error);
}

}  // namespace
}  // namespace mt
