#include "run/kv_store.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/kernels.h"
#include "run/rope.h"

namespace mt {
namespace {

TEST(KvStore, PositionsWrittenAgainLeaveNoTrace) {
  constexpr int64_t d = 64, n_heads = 2, n = 53;
  ThreadPool pool(1);
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> rows(n * n_heads * d), wrong(n_heads * d);
  for (float& x : rows) x = normal(random);
  for (Dtype type : {Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q8_0, Dtype::Q4_0})
    for (KvPart part : {KvPart::keys, KvPart::values}) {
      KvStore once(part, type, 2, n_heads, d, n), again(part, type, 2, n_heads, d, n);
      for (int64_t p = 0; p < n; ++p) {
        const ConstMatrix row{rows.data() + p * n_heads * d, 1, n_heads * d, n_heads * d};
        once.append(pool, 1, p, row);
        // Drafts that were not kept lie over the next positions, beyond a strip's end too.
        for (int64_t q = p; q < std::min(n, p + 7); ++q) {
          for (float& x : wrong) x = 100 * normal(random);
          again.append(pool, 1, q, {wrong.data(), 1, n_heads * d, n_heads * d});
        }
        again.append(pool, 1, p, row);
      }
      const CachedRows a = once.rows(1), b = again.rows(1);
      for (int64_t h = 0; h < n_heads; ++h)
        for (int64_t s = 0; s < n / kStrip; ++s)  // the last strip has positions without content
          EXPECT_EQ(std::memcmp(a.strip(h, s), b.strip(h, s),
                                size_t(kv_strip_bytes(s == 0 ? a.first_dtype : a.dtype, d))),
                    0)
              << name(type) << " strip " << s;
    }
}

// Keys by channel: what a query at each of the last positions reads.
struct ByChannel {
  static constexpr int64_t d = 64, n_heads = 2, cols = d * n_heads;
  std::vector<float> data;
  BlockTurns turns;
  static Attention attention() {
    Attention a;
    a.d_head = a.rope_dims = d;
    return a;
  }
  explicit ByChannel(int64_t n) : data(size_t(n * cols)), turns(attention(), n) {
    std::mt19937 random(5);
    for (float& x : data) x = std::normal_distribution<float>(1)(random);
  }
  ConstMatrix rows(int64_t from, int64_t to) const {
    return {data.data() + from * cols, to - from, cols, cols};
  }
  KvStore store(int64_t capacity, bool before_rope) const {
    return {KvPart::keys,
            Dtype::Q4_1,
            3,
            n_heads,
            d,
            capacity,
            before_rope ? turns.turns() : KeyTurns{}};
  }
  // [n_heads][position + 1][d]
  static std::vector<float> read(const KvStore& store, int64_t slot, int64_t position) {
    std::vector<float> strip(size_t(kStrip * d)), out;
    for (int64_t h = 0; h < n_heads; ++h)
      for (int64_t j = 0; j <= position; ++j) {
        load_keys(store.rows(slot).strip_at(h, j / kStrip, position), d, strip.data());
        for (int64_t i = 0; i < d; ++i) out.push_back(strip[size_t(i * kStrip + j % kStrip)]);
      }
    return out;
  }
};

// Rounded behind RoPE and before it.
class ByChannelStore : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(BeforeRope, ByChannelStore, testing::Bool());

TEST_P(ByChannelStore, KeepsTheFirstAndTheBeginningBlockInF16) {
  const ByChannel k(150);
  KvStore store = k.store(150, GetParam());
  ThreadPool pool(2);
  store.append(pool, 1, 0, k.rows(0, 150));
  const auto held = ByChannel::read(store, 1, 149);
  for (int64_t j = 0; j < 150; ++j) {
    double largest = 0;
    for (int64_t h = 0; h < 2; ++h)
      for (int64_t i = 0; i < 64; ++i)
        largest = std::max(largest, std::fabs(double(held[size_t((h * 150 + j) * 64 + i)]) -
                                              double(k.data[size_t(j * 128 + h * 64 + i)])));
    const bool f16 = j < 32 || j >= 128;
    EXPECT_LT(largest, f16 ? 0.002 : GetParam() ? 0.5 : 0.35) << j;
    EXPECT_GT(largest, f16 ? 0 : 0.05) << j;
  }
}

TEST_P(ByChannelStore, IsTheSameHoweverRowsCome) {
  constexpr int64_t n = 150;
  const ByChannel k(n), wrong(n + 8);
  ThreadPool pool(2);
  KvStore singly = wrong.store(n + 8, GetParam()), drafted = wrong.store(n + 8, GetParam());
  std::vector<std::vector<float>> expected;
  for (int64_t p = 0; p < n; ++p) {
    singly.append(pool, 1, p, k.rows(p, p + 1));
    expected.push_back(ByChannel::read(singly, 1, p));
    // Drafts, of which the first is right, over the borders of blocks; neighbours meanwhile.
    for (const int64_t q : {p, p + 1}) {
      std::vector<float> mixed(wrong.rows(q, q + 7).data, wrong.rows(q, q + 7).data + 7 * 128);
      for (float& x : mixed) x *= 100;
      if (q == p) std::copy_n(k.rows(p, p + 1).data, 128, mixed.data());
      drafted.append(pool, 1, q, {mixed.data(), 7, 128, 128});
      if (q == p) {
        EXPECT_EQ(ByChannel::read(drafted, 1, p), expected.back()) << p;
      }
      drafted.append(pool, 0, q, {mixed.data(), 7, 128, 128});
      drafted.append(pool, 2, q, {mixed.data(), 7, 128, 128});
    }
    EXPECT_EQ(ByChannel::read(drafted, 1, p), expected.back()) << p;
  }
  for (const int64_t piece : {3, 16, 31, 32, 33, 64, 100, 150}) {
    KvStore pieces = k.store(n, GetParam());
    for (int64_t p = 0; p < n; p += piece) {
      const int64_t end = std::min(n, p + piece);
      pieces.append(pool, 1, p, k.rows(p, end));
      EXPECT_EQ(ByChannel::read(pieces, 1, end - 1), expected[size_t(end - 1)]) << piece;
      if (piece < 32) {
        EXPECT_EQ(ByChannel::read(pieces, 1, p), expected[size_t(p)]) << piece;
      }
    }
  }
}

TEST_P(ByChannelStore, GoesOnFromWhatWasRounded) {
  const ByChannel k(300);
  ThreadPool pool(2);
  KvStore store = k.store(300, GetParam());
  store.append(pool, 1, 0, k.rows(0, 300));
  const auto all = ByChannel::read(store, 1, 299);
  // Behind 100: 32 .. 95 as they were, 96 .. 99 as rounded, what is new in F16.
  store.append(pool, 1, 100, k.rows(200, 210));
  const auto held = ByChannel::read(store, 1, 109);
  for (int64_t h = 0; h < 2; ++h)
    for (int64_t j = 0; j < 110; ++j)
      for (int64_t i = 0; i < 64; ++i) {
        const float x = held[size_t((h * 110 + j) * 64 + i)];
        const float was = j < 100 ? all[size_t((h * 300 + j) * 64 + i)]
                                  : k.data[size_t((j + 100) * 128 + h * 64 + i)];
        if (j < 96)
          ASSERT_EQ(x, was) << j;
        else
          ASSERT_NEAR(x, was, 0.003) << j;
      }
  // Once more to an earlier block, whose place is another's now, and to a border.
  store.append(pool, 1, 70, k.rows(70, 71));
  const auto earlier = ByChannel::read(store, 1, 70);
  for (int64_t i = 0; i < 64; ++i)
    for (int64_t j = 64; j < 70; ++j)
      ASSERT_NEAR(earlier[size_t(j * 64 + i)], all[size_t(j * 64 + i)], 0.003) << j;
  store.append(pool, 1, 64, k.rows(64, 300));
  const auto whole = ByChannel::read(store, 1, 299);
  EXPECT_EQ(whole, all);
}

// RoPE turns a channel that lies far from zero through its whole size within a block, unless the
// block is rounded before it.
TEST(KvStore, BeforeRopeChannelsFarFromZeroStayNarrow) {
  constexpr int64_t d = 64, n = 320;
  ThreadPool pool(2);
  std::vector<int64_t> positions(n);
  std::iota(positions.begin(), positions.end(), 0);
  for (const bool neox : {false, true}) {
    Attention a = ByChannel::attention();
    a.rope_neox = neox;
    const BlockTurns turns(a, n);
    const RopeTable table(a, positions);
    std::mt19937 random(3);
    std::vector<float> keys(size_t(n * d)), strip(size_t(kStrip * d));
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t i = 0; i < d; ++i)
        keys[size_t(j * d + i)] = std::normal_distribution<float>(i % 8 ? 0 : 10)(random);
      reference_kernels().rope(keys.data() + j * d, table.row(j), d / 2, neox);
    }
    double error[2] = {};
    for (const bool before : {false, true}) {
      KvStore store(KvPart::keys, Dtype::Q4_1, 1, 1, d, n, before ? turns.turns() : KeyTurns{});
      store.append(pool, 0, 0, {keys.data(), n, d, d});
      for (int64_t j = 32; j < n; ++j) {
        load_keys(store.rows(0).strip_at(0, j / kStrip, n - 1), d, strip.data());
        for (int64_t i = 0; i < d; ++i)
          error[before] += std::pow(double(strip[size_t(i * kStrip + j % kStrip)]) -
                                        double(keys[size_t(j * d + i)]),
                                    2) /
                           double((n - 32) * d);
      }
    }
    // Steps of 4.1 / 15, a twelfth of whose square is the error; larger ones where 10 or 14 turn.
    EXPECT_NEAR(std::sqrt(error[1]), 4.1 / 15 / std::sqrt(12.0), 0.003) << neox;
    EXPECT_GT(std::sqrt(error[0]), 1.6 * std::sqrt(error[1])) << neox;
  }
}

}  // namespace
}  // namespace mt
