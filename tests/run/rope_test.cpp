#include "run/rope.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "kernels/kernels.h"

namespace mt {
namespace {

Attention attention_of(int64_t d, int64_t dims, bool neox) {
  Attention a;
  a.d_head = d;
  a.rope_dims = dims;
  a.rope_neox = neox;
  return a;
}

// Turned by the block, then by the place in it: what RoPE at the position gives.
TEST(BlockTurns, TurnAsTheTableOfThePosition) {
  std::vector<Attention> kinds;
  for (const bool neox : {false, true}) {
    kinds.push_back(attention_of(64, 64, neox));
    kinds.push_back(attention_of(64, 26, neox));
    kinds.push_back(attention_of(96, 0, neox));
    kinds.push_back(attention_of(32, 32, neox));
    kinds.back().rope_base = 1e6;
    kinds.back().rope_scale = 0.125;
    for (int i = 0; i < 16; ++i) kinds.back().rope_factors.push_back(1.0f + 0.25f * float(i));
  }
  std::vector<int64_t> positions(3000);
  std::iota(positions.begin(), positions.end(), 0);
  std::mt19937 random(1);
  for (const Attention& a : kinds) {
    const BlockTurns blocks(a, std::ssize(positions));
    const KeyTurns turns = blocks.turns();
    const RopeTable table(a, positions);
    const int64_t d = a.d_head, half = d / 2;
    std::vector<float> x(static_cast<size_t>(d));
    for (int64_t p : {0, 1, 31, 32, 77, 1055, 2999}) {
      for (float& v : x) v = std::normal_distribution<float>()(random);
      std::vector<float> expected = x, turned(x.size(), NAN);
      reference_kernels().rope(expected.data(), table.row(p), a.rope_dims / 2, a.rope_neox);
      for (int64_t i = 0; i < half; ++i) {
        const float* of_block = turns.blocks + p / 32 * d + i;
        const float* of_lane = turns.lanes + i * 64 + p % 32;
        const auto at_x = size_t(turns.channel[i]), at_y = size_t(turns.channel[half + i]);
        const float u = x[at_x] * of_block[0] - x[at_y] * of_block[half];
        const float v = x[at_y] * of_block[0] + x[at_x] * of_block[half];
        turned[at_x] = u * of_lane[0] - v * of_lane[32];
        turned[at_y] = v * of_lane[0] + u * of_lane[32];
      }
      for (size_t i = 0; i < x.size(); ++i)
        ASSERT_NEAR(turned[i], expected[i], 2e-6)
            << "neox " << a.rope_neox << " dims " << a.rope_dims << " position " << p << " " << i;
    }
  }
}

TEST(BlockTurns, ServeWhatTurnsTheSameWay) {
  const Attention a = attention_of(64, 64, true);
  const BlockTurns blocks(a, 100);
  EXPECT_TRUE(blocks.serves(a));
  EXPECT_FALSE(blocks.serves(attention_of(64, 64, false)));
  EXPECT_FALSE(blocks.serves(attention_of(64, 32, true)));
  EXPECT_FALSE(blocks.serves(attention_of(96, 64, true)));
  Attention other = a;
  other.rope_base = 1e6;
  EXPECT_FALSE(blocks.serves(other));
}

}  // namespace
}  // namespace mt
