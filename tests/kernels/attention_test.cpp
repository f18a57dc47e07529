#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "dtype/half.h"

// Strips of cached rows: what rounding costs, and every table's products beside f64 sums over the
// values that the strip holds.
namespace mt {
namespace {

constexpr Dtype kTypes[] = {Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q8_0, Dtype::Q4_0};
// Q4_1: of keys alone.
constexpr Dtype kKeyTypes[] = {Dtype::F32,  Dtype::F16,  Dtype::BF16,
                               Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_1};

std::vector<float> normal(size_t n, unsigned seed, float size = 1) {
  std::mt19937 random(seed);
  std::vector<float> x(n);
  for (float& v : x) v = size * std::normal_distribution<float>()(random);
  return x;
}

// Keys in blocks by channel, by way of F16; the last block's end is zeros.
struct Blocks {
  int64_t n, d, strips;
  std::vector<std::byte> keys;
  std::vector<float> held;  // [n, d]

  Blocks(int64_t n_, int64_t d_, const std::vector<float>& k)
      : n(n_), d(d_), strips((n_ + 31) / 32 * 2) {
    const int64_t bytes = 2 * kv_strip_bytes(Dtype::Q4_1, d);
    const int64_t half = kv_strip_bytes(Dtype::F16, d);
    keys.assign(size_t(strips / 2 * bytes), std::byte{0xff});
    std::vector<float> strip(size_t(kStrip * d));
    for (int64_t b = 0; b < strips / 2; ++b) {
      std::vector<std::byte> f16(size_t(2 * half), std::byte{0});
      for (int64_t j = b * 32; j < std::min(n, b * 32 + 32); ++j)
        store_key(Dtype::F16, d, k.data() + j * d, f16.data() + j % 32 / kStrip * half, j % kStrip);
      round_key_block(d, f16.data(), keys.data() + b * bytes);
      for (int64_t part = 0; part < 2; ++part) {
        load_key_block(d, keys.data() + b * bytes, part, strip.data());
        for (int64_t j = b * 32 + part * kStrip; j < std::min(n, b * 32 + (part + 1) * kStrip); ++j)
          for (int64_t i = 0; i < d; ++i) held.push_back(strip[size_t(i * kStrip + j % kStrip)]);
      }
    }
  }
};

// The largest error of one value of a block whose largest magnitude is `largest`.
double rounding(Dtype type, double x, double largest) {
  if (type == Dtype::F32) return 0;
  if (type == Dtype::F16) return std::max(std::fabs(x) * 0x1p-11, 0x1p-25);
  if (type == Dtype::BF16) return std::fabs(x) * 0x1p-8;
  // Half a step; at Q4_0 a whole one for what is opposite to the largest: -8 .. 7. The step itself
  // is rounded to f16, which the largest code multiplies.
  const double step = largest / (type == Dtype::Q8_0 ? 127 : 8);
  return step * (type == Dtype::Q8_0 ? 0.5 + 127 * 0x1p-11 : 1 + 8 * 0x1p-11) * 1.0001;
}

struct Strips {
  Dtype type;
  int64_t n, d, strips;
  std::vector<std::byte> keys, values;
  std::vector<float> held_keys, held_values;  // [n, d]

  Strips(Dtype t, int64_t n_, int64_t d_, const std::vector<float>& k, const std::vector<float>& v)
      : type(t), n(n_), d(d_), strips((n_ + kStrip - 1) / kStrip) {
    const int64_t bytes = kv_strip_bytes(t, d);
    keys.assign(size_t(strips * bytes), std::byte{0xff});  // NaN where nothing is
    values = keys;
    for (int64_t j = 0; j < n; ++j) {
      store_key(t, d, k.data() + j * d, keys.data() + j / kStrip * bytes, j % kStrip);
      store_value(t, d, v.data() + j * d, values.data() + j / kStrip * bytes, j % kStrip);
    }
    std::vector<float> strip(size_t(kStrip * d));
    for (int64_t b = 0; b < strips; ++b) {
      load_keys(t, d, keys.data() + b * bytes, strip.data());
      for (int64_t j = 0; j < std::min(kStrip, n - b * kStrip); ++j)
        for (int64_t i = 0; i < d; ++i) held_keys.push_back(strip[size_t(i * kStrip + j)]);
      load_values(t, d, values.data() + b * bytes, strip.data());
      held_values.insert(held_values.end(), strip.begin(),
                         strip.begin() + std::min(kStrip, n - b * kStrip) * d);
    }
  }
};

TEST(KvStrips, RoundAsTheirFormats) {
  for (const Dtype type : kTypes)
    for (const int64_t d : {32, 64, 96, 13}) {
      if (!kv_type_fits(type, d)) continue;
      const int64_t n = 21;
      const auto k = normal(size_t(n * d), 1), v = normal(size_t(n * d), 2, 1e-3f);
      const Strips s(type, n, d, k, v);
      for (int64_t j = 0; j < n; ++j)
        for (int64_t i = 0; i < d; ++i)
          for (const auto& [x, held] : {std::pair(&k, &s.held_keys), {&v, &s.held_values}}) {
            double largest = 0;
            for (int64_t b = i / 32 * 32; b < std::min(i / 32 * 32 + 32, d); ++b)
              largest = std::max(largest, std::fabs(double((*x)[size_t(j * d + b)])));
            const auto at = size_t(j * d + i);
            ASSERT_NEAR((*held)[at], (*x)[at], rounding(type, (*x)[at], largest))
                << name(type) << " d " << d << " at " << at;
          }
    }
}

TEST(KvStrips, KeepTheLargestAndShowWhatIsNotFinite) {
  for (const Dtype type : kTypes) {
    std::vector<float> x(64, 0.25f);
    x[3] = -4e5f;
    const Strips large(type, 1, 64, x, x);
    for (const auto* held : {&large.held_keys, &large.held_values})
      EXPECT_NEAR((*held)[3], type == Dtype::F16 ? -65504.0 : -4e5, 3e3) << name(type);
    x[3] = std::numeric_limits<float>::infinity();
    const Strips bad(type, 1, 64, x, x);
    for (const auto* held : {&bad.held_keys, &bad.held_values}) {
      EXPECT_FALSE(std::isfinite((*held)[3])) << name(type);
      EXPECT_TRUE(std::isfinite((*held)[40])) << name(type);  // of another block
    }
    const std::vector<float> zeros(64, 0.0f);
    const Strips nothing(type, 1, 64, zeros, zeros);
    EXPECT_EQ(nothing.held_keys, zeros);
    EXPECT_EQ(nothing.held_values, zeros);
  }
}

TEST(KvStrips, RoundByChannelToHalfAStep) {
  const int64_t n = 96, d = 64;
  auto k = normal(size_t(n * d), 1);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < d; ++i)  // channels differ in size and lie off zero
      k[size_t(j * d + i)] =
          k[size_t(j * d + i)] * std::pow(10.0f, float(i % 5 - 3)) + float(i % 3);
    k[size_t(j * d + 7)] = 3.5f;
    k[size_t(j * d + 9)] = 0.0f;
  }
  k[size_t(40 * d + 11)] = -4e5f;
  const Blocks s(n, d, k);
  for (int64_t i = 0; i < d; ++i)
    for (int64_t b = 0; b < n; b += 32) {
      double low = 1e9, high = -1e9;
      for (int64_t j = b; j < b + 32; ++j) {
        low = std::min(low, std::max(-65504.0, double(k[size_t(j * d + i)])));
        high = std::max(high, double(k[size_t(j * d + i)]));
      }
      // Values come in F16; the step is rounded to F16, which the largest code multiplies.
      const double step = (high - low) / 15, size = std::max(std::fabs(low), std::fabs(high));
      for (int64_t j = b; j < b + 32; ++j) {
        const double x = std::max(-65504.0, double(k[size_t(j * d + i)]));
        ASSERT_NEAR(s.held[size_t(j * d + i)], x,
                    step * (0.5 + 15 * 0x1p-11) * 1.0001 + size * 0x1p-11 * 2)
            << "channel " << i << " position " << j;
      }
    }
  for (int64_t j = 0; j < n; ++j) {
    ASSERT_EQ(s.held[size_t(j * d + 7)], 3.5f);
    ASSERT_EQ(s.held[size_t(j * d + 9)], 0.0f);
  }
  for (const float bad : {INFINITY, NAN}) {
    k[size_t(70 * d + 5)] = bad;
    const Blocks shown(n, d, k);
    for (int64_t j = 0; j < n; ++j) {
      EXPECT_EQ(std::isnan(shown.held[size_t(j * d + 5)]), j >= 64) << j;
      EXPECT_FALSE(std::isnan(shown.held[size_t(j * d + 4)])) << j;
    }
  }
}

TEST(AttentionKernels, EveryTableReadsWhatTheStripsHold) {
  for (const Dtype type : kKeyTypes)
    for (const int64_t d : {16, 64, 80, 96, 256, 288, 13})
      for (const int64_t heads : {1, 2, 3, 4, 5, 6, 7, 8, 11}) {
        if (!kv_type_fits(type, d) || (heads > 3 && d > 100 && d != 288)) continue;
        const int64_t n = heads % 2 ? 37 : 16, width = 64;
        const auto q = normal(size_t(heads * d), 3);
        const auto k = normal(size_t(n * d), 4);
        const Strips s(by_channel(type) ? Dtype::Q4_0 : type, n, d, k, normal(size_t(n * d), 5));
        const Blocks blocks(by_channel(type) ? n : 0, by_channel(type) ? d : 32, k);
        const auto& held = by_channel(type) ? blocks.held : s.held_keys;
        const auto& bytes = by_channel(type) ? blocks.keys : s.keys;
        auto p = normal(size_t(heads * width), 6);
        for (const Kernels* table : available_kernels()) {
          const AttentionKernels kernels = attention_kernels(*table, type);
          std::vector<float> scores(size_t(heads * width));
          kernels.scores(heads, by_channel(type) ? blocks.strips : s.strips, d, q.data(), d,
                         bytes.data(), scores.data(), width);
          // A query of the byte products is rounded by 2^-15.9 of the largest of its 32 channels,
          // here below 5; by channel of the largest product with a step, the sums are those of
          // minima and codes, either below twice a block's largest key. Sums in f32 besides.
          for (int64_t h = 0; h < heads; ++h)
            for (int64_t j = 0; j < n; ++j) {
              double exact = 0, size = 0;
              for (int64_t i = 0; i < d; ++i) {
                const double key = held[size_t(j * d + i)];
                const double spread = by_channel(type) ? 10 : std::fabs(key);
                exact += q[size_t(h * d + i)] * key;
                size += 5 * spread * (has_kv_scales(type) ? 0x1p-15 : 0) +
                        std::fabs(q[size_t(h * d + i)]) * spread * double(d) * 0x1p-23;
              }
              ASSERT_NEAR(scores[size_t(h * width + j)], exact, size)
                  << table->name << " " << name(type) << " d " << d << " heads " << heads << " key "
                  << j;
            }
          if (by_channel(type)) continue;
          for (const auto& [from, to] : {std::pair<int64_t, int64_t>{0, n}, {5, n}, {5, 7}})
            for (const bool accumulate : {false, true}) {
              std::vector<float> out(size_t(heads * d), accumulate ? 0.5f : NAN);
              kernels.mix(heads, from, to, d, p.data(), width, s.values.data(), out.data(), d,
                          accumulate);
              for (int64_t h = 0; h < heads; ++h)
                for (int64_t i = 0; i < d; ++i) {
                  double exact = accumulate ? 0.5 : 0, size = 1;
                  for (int64_t j = from; j < to; ++j) {
                    const double term =
                        double(p[size_t(h * width + j)]) * double(s.held_values[size_t(j * d + i)]);
                    exact += term;
                    size += std::fabs(term);
                  }
                  ASSERT_NEAR(out[size_t(h * d + i)], exact, size * double(n) * 0x1p-23)
                      << table->name << " " << name(type) << " d " << d << " heads " << heads
                      << " channel " << i << " from " << from;
                }
            }
        }
      }
}

// Blocks rounded before RoPE, behind positions of `first` others. Pairs lie apart or side by side;
// of the channels behind `pairs` pairs none is turned.
struct TurnedBlocks {
  int64_t n_blocks, d, first;
  std::vector<int32_t> channel;
  std::vector<float> of_block, of_lane;
  std::vector<std::byte> keys;
  std::vector<float> held;  // [n, d], turned to their positions

  KeyTurns turns() const { return {channel.data(), of_block.data(), of_lane.data()}; }
  static double frequency(int64_t i) { return std::pow(500.0, -double(i) / 13); }
  // x: [n, d], not turned; out of the channels of a pair at position p.
  std::vector<float> turned(const std::vector<float>& x, int64_t pairs) const {
    std::vector<float> y = x;
    for (int64_t j = 0; j < n_blocks * 32; ++j)
      for (int64_t i = 0; i < pairs; ++i) {
        const auto a = size_t(j * d + channel[size_t(i)]);
        const auto b = size_t(j * d + channel[size_t(d / 2 + i)]);
        const double angle = double(first * 32 + j) * frequency(i);
        const double cos = std::cos(angle), sin = std::sin(angle), u = double(x[a]),
                     v = double(x[b]);
        y[a] = float(u * cos - v * sin);
        y[b] = float(v * cos + u * sin);
      }
    return y;
  }

  TurnedBlocks(int64_t n_, int64_t d_, int64_t first_, bool apart, int64_t pairs,
               const std::vector<float>& x)
      : n_blocks(n_), d(d_), first(first_) {
    const int64_t half = d / 2;
    for (int64_t part = 0; part < 2; ++part)
      for (int64_t i = 0; i < half; ++i)
        channel.push_back(
            int32_t(i < pairs ? (apart ? part * pairs + i : 2 * i + part) : 2 * i + part));
    for (int64_t b = 0; b < first + n_blocks; ++b)
      for (int64_t part = 0; part < 2; ++part)
        for (int64_t i = 0; i < half; ++i) {
          const double angle = i < pairs ? double(b * 32) * frequency(i) : 0;
          of_block.push_back(float(part ? std::sin(angle) : std::cos(angle)));
        }
    for (int64_t i = 0; i < half; ++i)
      for (int64_t part = 0; part < 2; ++part)
        for (int64_t j = 0; j < 32; ++j) {
          const double angle = i < pairs ? double(j) * frequency(i) : 0;
          of_lane.push_back(float(part ? std::sin(angle) : std::cos(angle)));
        }
    const std::vector<float> at = turned(x, pairs);
    const int64_t bytes = 2 * kv_strip_bytes(Dtype::Q4_1, d);
    const int64_t strip_bytes = kv_strip_bytes(Dtype::F16, d);
    keys.assign(size_t(n_blocks * bytes), std::byte{0xff});
    std::vector<float> strip(size_t(kStrip * d));
    for (int64_t b = 0; b < n_blocks; ++b) {
      std::vector<std::byte> f16(size_t(2 * strip_bytes));
      for (int64_t j = 0; j < 32; ++j)
        store_key(Dtype::F16, d, at.data() + (b * 32 + j) * d,
                  f16.data() + j / kStrip * strip_bytes, j % kStrip);
      round_turned_key_block(d, f16.data(), turns(), first + b, keys.data() + b * bytes);
      for (int64_t part = 0; part < 2; ++part) {
        load_turned_key_block(d, keys.data() + b * bytes, part, turns(), first + b, strip.data());
        for (int64_t j = 0; j < kStrip; ++j)
          for (int64_t i = 0; i < d; ++i) held.push_back(strip[size_t(i * kStrip + j)]);
      }
    }
  }
};

TEST(KvStrips, BlocksBeforeRopeHoldWhatIsNotTurned) {
  const int64_t n = 3, d = 96;
  for (const bool apart : {false, true})
    for (const int64_t pairs : {48, 20, 0}) {
      auto x = normal(size_t(n * 32 * d), 1);
      for (int64_t j = 0; j < n * 32; ++j)
        for (int64_t i = 0; i < d; ++i)  // channels differ in size and lie off zero
          x[size_t(j * d + i)] =
              x[size_t(j * d + i)] * std::pow(4.0f, float(i % 4 - 3)) + float(i % 3) * 3;
      // A pair that stays where it is: of the turned keys F16 leaves some noise, far from zero.
      for (int64_t j = 0; j < n * 32; ++j)
        for (const int64_t i : {apart ? int64_t{2} : 4, apart ? pairs + 2 : 5})
          x[size_t(j * d + i)] = 9.003f;
      const TurnedBlocks s(n, d, 7, apart, pairs, x);
      const auto at = s.turned(x, pairs);
      std::vector<float> strip(size_t(kStrip * d));
      for (int64_t b = 0; b < n; ++b) {
        std::vector<double> step(static_cast<size_t>(d));
        for (int64_t i = 0; i < d; ++i) {
          const auto of = [&](int64_t j) {
            return double(x[size_t((b * 32 + j) * d + s.channel[size_t(i)])]);
          };
          double low = of(0), high = of(0);
          for (int64_t j = 0; j < 32; ++j) low = std::min(low, of(j)), high = std::max(high, of(j));
          // Half a step; and what F16 costs, where the keys lie and where their minimum does.
          step[size_t(s.channel[size_t(i)])] = (high - low) / 30 * 1.02 + 12 * 0x1p-10;
        }
        for (int64_t half = 0; half < 2; ++half) {
          load_key_block(d, s.keys.data() + b * 2 * kv_strip_bytes(Dtype::Q4_1, d), half,
                         strip.data());
          for (int64_t place = 0; place < d; ++place)
            for (int64_t j = 0; j < kStrip; ++j) {
              const int64_t i = s.channel[size_t(place)];
              ASSERT_NEAR(strip[size_t(place * kStrip + j)],
                          x[size_t((b * 32 + half * kStrip + j) * d + i)], step[size_t(i)])
                  << "apart " << apart << " pairs " << pairs << " place " << place << " at " << j;
            }
        }
        for (int64_t j = b * 32; j < b * 32 + 32; ++j)
          for (int64_t i = 0; i < d / 2; ++i) {
            const int64_t u = s.channel[size_t(i)], v = s.channel[size_t(d / 2 + i)];
            for (const int64_t c : {u, v})
              ASSERT_NEAR(s.held[size_t(j * d + c)], at[size_t(j * d + c)],
                          step[size_t(u)] + step[size_t(v)])
                  << j;
          }
      }
    }
  // What is not finite is seen: in both channels of its pair, in its block.
  auto x = normal(64 * 32, 1);
  x[40 * 32 + 6] = INFINITY;
  const TurnedBlocks bad(2, 32, 0, false, 16, x);
  for (int64_t j = 0; j < 64; ++j)
    for (int64_t i = 0; i < 32; ++i)
      EXPECT_EQ(std::isnan(bad.held[size_t(j * 32 + i)]), j >= 32 && i / 2 == 3) << j << " " << i;
}

TEST(AttentionKernels, EveryTableTurnsQueriesToBlocksBeforeRope) {
  for (const int64_t d : {32, 64, 96, 256, 288})
    for (const int64_t heads : {1, 2, 3, 4, 5, 6, 7, 8, 11}) {
      if (heads > 3 && d > 100 && d != 288) continue;
      const int64_t n = 1 + heads % 3, width = 128, first = heads * 5;
      const auto q = normal(size_t(heads * d), 3);
      const TurnedBlocks s(n, d, first, heads % 2, heads % 4 == 3 ? d / 2 - 9 : d / 2,
                           normal(size_t(n * 32 * d), 4));
      std::vector<float> placed;
      for (int64_t h = 0; h < heads; ++h)
        for (const int32_t c : s.channel) placed.push_back(q[size_t(h * d + c)]);
      for (const Kernels* table : available_kernels()) {
        std::vector<float> scores(size_t(heads * width), NAN);
        attention_kernels(*table, Dtype::Q4_1)
            .turned_scores(heads, first, n, d, placed.data(), d, s.keys.data(), s.turns(),
                           scores.data(), width);
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t j = 0; j < width; ++j) {
            const float score = scores[size_t(h * width + j)];
            if (j >= n * 32) {
              ASSERT_TRUE(std::isnan(score)) << table->name << " wrote behind the blocks";
              continue;
            }
            double exact = 0, size = 0;
            for (int64_t i = 0; i < d; ++i) {
              exact += double(q[size_t(h * d + i)]) * double(s.held[size_t(j * d + i)]);
              size += std::fabs(double(q[size_t(h * d + i)])) * 3;
            }
            ASSERT_NEAR(score, exact, size * double(d + 8) * 0x1p-24)
                << table->name << " d " << d << " heads " << heads << " key " << j;
          }
      }
    }
}

TEST(AttentionKernels, AQueryThatIsNotFiniteGivesNoNumbers) {
  for (const Dtype type : kKeyTypes) {
    auto q = normal(64, 7);
    q[40] = NAN;
    const auto k = normal(32 * 64, 8);
    const Strips s(by_channel(type) ? Dtype::F32 : type, 32, 64, k, normal(32 * 64, 9));
    const Blocks blocks(32, 64, k);
    for (const Kernels* table : available_kernels()) {
      std::vector<float> scores(32);
      attention_kernels(*table, type)
          .scores(1, 2, 64, q.data(), 64, (by_channel(type) ? blocks.keys : s.keys).data(),
                  scores.data(), 32);
      for (float x : scores) EXPECT_TRUE(std::isnan(x)) << table->name << " " << name(type);
      if (!by_channel(type)) continue;
      const TurnedBlocks turned(1, 64, 0, true, 32, k);
      attention_kernels(*table, type)
          .turned_scores(1, 0, 1, 64, q.data(), 64, turned.keys.data(), turned.turns(),
                         scores.data(), 32);
      for (float x : scores) EXPECT_TRUE(std::isnan(x)) << table->name;
    }
  }
}

}  // namespace
}  // namespace mt
