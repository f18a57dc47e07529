// Encoders of the two-level formats without mins: Q3_K, Q6_K, IQ4_XS. A weight is
// d * sub-scale * level, the sub-scale an integer. Lanes are sub-blocks.
#include <algorithm>
#include <cmath>

#include "dtype/blocks.h"
#include "dtype/codec.h"
#include "dtype/dtype.h"
#include "dtype/fit_scale.h"
#include "dtype/kquants.h"
#include "dtype/recover.h"

namespace mt {
namespace {

using Codes = float (*)[kLanes];  // one column of codes a sub-block

struct Iq4Table {
  static constexpr const float (&kLevels)[16] = kIq4Values;
};

struct Q3_KFormat {
  using Block = block::Q3_K;
  using Levels = IntegerLevels<-4, 3>;
  static constexpr int kLength = 16, kSubs = 16, kLow = -32, kHigh = 31;
  static constexpr float kTargets[] = {-4,    4,    -3.6f, 3.6f, -3.25f, 3.25f, -2.9f, 2.9f,
                                       -4.4f, 4.4f, -4.8f, 4.8f, -5.3f,  5.3f,  -6,    6,
                                       -2.4f, 2.4f, -1.9f, 1.9f, -1,     1,     -7,    7};
  static constexpr int kFine = 2;
  static constexpr float kFineStep = 0.04f;
  static void pack(Block& b, uint16_t d, const int* scales, Codes codes, int lane) {
    b = {};
    b.d = d;
    pack_q3_scales(scales, b.scales);
    for (int sub = 0; sub < 16; ++sub) {
      for (int i = 0; i < 16; ++i) {
        const auto q = static_cast<unsigned>(codes[i][lane + sub]);
        const int at = 16 * (sub % 2) + i;
        uint8_t& low = b.qs[32 * (sub / 8) + at];
        low = static_cast<uint8_t>(low | (q & 3) << (2 * (sub % 8 / 2)));
        b.hmask[at] = static_cast<uint8_t>(b.hmask[at] | (q >> 2) << (sub / 2));
      }
    }
  }
};

struct Q6_KFormat {
  using Block = block::Q6_K;
  using Levels = IntegerLevels<-32, 31>;
  static constexpr int kLength = 16, kSubs = 16, kLow = -128, kHigh = 127;
  static constexpr float kTargets[] = {-32,    31,    -31.4f, 31.4f, -30.8f, 30.6f, -30.2f, 30,
                                       -29.5f, 29.5f, -32.4f, 32.4f, -33,    33,    -33.8f, 33.8f};
  static constexpr int kFine = 1;
  static constexpr float kFineStep = 0.006f;
  static void pack(Block& b, uint16_t d, const int* scales, Codes codes, int lane) {
    b = {};
    b.d = d;
    for (int sub = 0; sub < 16; ++sub) {
      b.scales[sub] = static_cast<int8_t>(scales[sub]);
      for (int i = 0; i < 16; ++i) {
        const auto q = static_cast<unsigned>(codes[i][lane + sub]);
        uint8_t& low = b.ql[64 * (sub / 8) + 16 * (sub % 4) + i];
        uint8_t& high = b.qh[32 * (sub / 8) + 16 * (sub % 2) + i];
        low = static_cast<uint8_t>(low | (q & 15) << (4 * (sub % 8 / 4)));
        high = static_cast<uint8_t>(high | (q >> 4) << (2 * (sub % 8 / 2)));
      }
    }
  }
};

struct Iq4XsFormat {
  using Block = block::IQ4_XS;
  using Levels = ListedLevels<Iq4Table>;
  static constexpr int kLength = 32, kSubs = 8, kLow = -32, kHigh = 31;
  static constexpr float kTargets[] = {-127, 113, -121, 107, -115, 100, -133, 119, -140, 126,
                                       -148, 134, -158, 143, -170, 155, -108, 94,  -185, 170};
  static constexpr int kFine = 2;
  static constexpr float kFineStep = 0.03f;
  static void pack(Block& b, uint16_t d, const int* scales, Codes codes, int lane) {
    b = {};
    b.d = d;
    unsigned high = 0;
    for (int sub = 0; sub < 8; ++sub) {
      const auto stored = static_cast<unsigned>(scales[sub] + 32);
      uint8_t& low = b.scales_l[sub / 2];
      low = static_cast<uint8_t>(low | (stored & 15) << (4 * (sub % 2)));
      high |= stored >> 4 << (2 * sub);
      for (int i = 0; i < 16; ++i) {
        const auto first = static_cast<unsigned>(codes[i][lane + sub]);
        const auto second = static_cast<unsigned>(codes[i + 16][lane + sub]);
        b.qs[16 * sub + i] = static_cast<uint8_t>(first | second << 4);
      }
    }
    b.scales_h = static_cast<uint16_t>(high);
  }
};

template <int W>
struct ScaleSums {
  VF<W> error, xq, qq;
};

template <int W, int N, class Levels>
MT_INLINE ScaleSums<W> sums_at(const Columns<N>& c, int lane, VF<W> scale) {
  const VF<W> inverse = inverse_or_zero<W>(scale);
  ScaleSums<W> s{splat<W>(0.0f), splat<W>(0.0f), splat<W>(0.0f)};
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const VF<W> x = load<W>(&c.x[i][lane]), w = load<W>(&c.w[i][lane]);
    const VF<W> q = Levels::template nearest<W>(x * inverse);
    const VF<W> e = x - scale * q;
    const VF<W> wq = w * q;
    s.error += w * (e * e);
    s.xq += wq * x;
    s.qq += wq * q;
  }
  return s;
}

// 16 sub-blocks' search state, lane by lane; a super-block owns kSubs consecutive lanes.
struct alignas(64) SubScales {
  float wanted[kLanes];     // the scale a sub-block would choose for itself
  float curvature[kLanes];  // what a squared deviation from it costs
  float d[kLanes];          // the super-block's scale, repeated
  float integer[kLanes];
  float error[kLanes], xq[kLanes], qq[kLanes];
};

// Super-scales that put the largest wanted scale on (nearly) the ends of the integer range, ranked
// by the curvature-weighted rounding error of all wanted scales. Gives the best kStarts.
constexpr int kStarts = 3;
template <class Format>
MT_INLINE void rank_super_scales(const SubScales& s, int first, float starts[kStarts]) {
  float extreme = 0.0f;
  for (int j = first; j < first + Format::kSubs; ++j) {
    if (std::fabs(s.wanted[j]) > std::fabs(extreme)) extreme = s.wanted[j];
  }
  float losses[kStarts];
  for (int k = 0; k < kStarts; ++k) {
    starts[k] = 0.0f;
    losses[k] = 3e38f;
  }
  if (extreme == 0.0f) return;
  constexpr int kPerSide = 10;
  for (int t = 0; t < 2 * kPerSide; ++t) {
    const float end = static_cast<float>(t % 2 == 0 ? Format::kLow : Format::kHigh);
    // Whole numbers: weights that came from this format are found again.
    const float d =
        extreme / (end > 0.0f ? end - static_cast<float>(t / 2) : end + static_cast<float>(t / 2));
    const float inverse = 1.0f / d;
    if (!(std::fabs(d) > 1e-30f)) continue;
    float loss = 0.0f;
    for (int j = first; j < first + Format::kSubs; ++j) {
      float q = (s.wanted[j] * inverse + 12582912.0f) - 12582912.0f;
      q = std::clamp(q, static_cast<float>(Format::kLow), static_cast<float>(Format::kHigh));
      const float e = s.wanted[j] - d * q;
      loss += s.curvature[j] * e * e;
    }
    for (int k = 0; k < kStarts; ++k) {
      if (loss < losses[k]) {
        for (int m = kStarts - 1; m > k; --m) {
          losses[m] = losses[m - 1];
          starts[m] = starts[m - 1];
        }
        losses[k] = loss;
        starts[k] = d;
        break;
      }
    }
  }
}

// Given the super-scales s.d: each sub-block takes the best of three integers around `around`.
template <int W, class Format>
MT_INLINE void choose_integers(const Columns<Format::kLength>& c, SubScales& s, int lane,
                               VF<W> around) {
  const VF<W> d = load<W>(s.d + lane);
  ScaleSums<W> best{splat<W>(3e38f), splat<W>(0.0f), splat<W>(0.0f)};
  VF<W> chosen = splat<W>(0.0f);
  for (int k = -1; k <= 1; ++k) {
    const VF<W> integer = vmin<W>(vmax<W>(around + static_cast<float>(k), splat<W>(Format::kLow)),
                                  splat<W>(Format::kHigh));
    const ScaleSums<W> sums =
        sums_at<W, Format::kLength, typename Format::Levels>(c, lane, d * integer);
    const VI<W> better = sums.error < best.error;
    best.error = better ? sums.error : best.error;
    best.xq = better ? sums.xq : best.xq;
    best.qq = better ? sums.qq : best.qq;
    chosen = better ? integer : chosen;
  }
  store<W>(s.integer + lane, chosen);
  store<W>(s.error + lane, best.error);
  store<W>(s.xq + lane, best.xq);
  store<W>(s.qq + lane, best.qq);
}

template <class Format>
struct EncodeSubScales {
  static constexpr int kLength = Format::kLength, kSubs = Format::kSubs;
  static constexpr int kSupers = kLanes / kSubs;
  using Levels = typename Format::Levels;

  template <int W>
  static MT_INLINE void run(const float* src, const float* importance, std::byte* dst, int64_t n) {
    Columns<kLength> c;
    SubScales s;
    alignas(64) float codes[kLength][kLanes];
    const int64_t n_blocks = n / 256;
    for (int64_t first = 0; first < n_blocks; first += kSupers) {
      const int used = static_cast<int>(std::min<int64_t>(kSupers, n_blocks - first));
      for (int g = 0; g < kSupers; ++g) {
        const int64_t at = (first + g) * 256;
        const float* block_importance =
            g < used && importance != nullptr ? importance + at : nullptr;
        const double factor = importance_factor(block_importance, 256);
        for (int j = 0; j < kSubs; ++j) {
          if (g < used) {
            fill_lane(c, g * kSubs + j, src + at + j * kLength,
                      factor == 0.0 ? nullptr : block_importance + j * kLength, factor,
                      65504.0f * 32.0f * Levels::kLargest);
          } else {
            clear_lane(c, g * kSubs + j);
          }
        }
      }
      for (int l = 0; l < kLanes; l += W) {
        const ScaleFit<W> fit = search_scale<W, kLength, Levels, Format>(c, l);
        store<W>(s.wanted + l, fit.d);
        store<W>(s.curvature + l, ratio_or_zero<W>(fit.gain, fit.d * fit.d));
      }

      float starts[kSupers][kStarts];
      float best_error[kSupers], best_d[kSupers];
      float best_integer[kLanes] = {};
      for (int g = 0; g < kSupers; ++g) {
        rank_super_scales<Format>(s, g * kSubs, starts[g]);
        best_error[g] = 3e38f;
        best_d[g] = 0.0f;
      }
      for (int start = 0; start < kStarts; ++start) {
        float d[kSupers];
        for (int g = 0; g < kSupers; ++g) d[g] = starts[g][start];
        for (int round = 0; round < 3; ++round) {
          for (int l = 0; l < kLanes; ++l) s.d[l] = d[l / kSubs];
          for (int l = 0; l < kLanes; l += W) {
            const VF<W> half = round_to_half<W>(load<W>(s.d + l));
            store<W>(s.d + l, half);
            const VF<W> around = round == 0
                                     ? vround<W>(load<W>(s.wanted + l) * inverse_or_zero<W>(half))
                                     : load<W>(s.integer + l);
            choose_integers<W, Format>(c, s, l, around);
          }
          for (int g = 0; g < kSupers; ++g) {
            float error = 0.0f, xq = 0.0f, qq = 0.0f;
            for (int j = g * kSubs; j < (g + 1) * kSubs; ++j) {
              error += s.error[j];
              xq += s.integer[j] * s.xq[j];
              qq += s.integer[j] * s.integer[j] * s.qq[j];
            }
            if (error < best_error[g]) {
              best_error[g] = error;
              best_d[g] = s.d[g * kSubs];
              for (int j = g * kSubs; j < (g + 1) * kSubs; ++j) best_integer[j] = s.integer[j];
            }
            d[g] = qq > 1e-37f ? xq / qq : 0.0f;
          }
        }
      }

      for (int g = 0; g < used; ++g) {
        float d, integers[kSubs];
        if (!recover_sub_scales<W, Levels>(src + (first + g) * 256, kSubs, kLength, Format::kLow,
                                           Format::kHigh, &d, integers))
          continue;
        best_d[g] = d;
        std::copy(integers, integers + kSubs, best_integer + g * kSubs);
      }
      for (int l = 0; l < kLanes; ++l) s.d[l] = best_d[l / kSubs] * best_integer[l];
      for (int l = 0; l < kLanes; l += W) {
        put_codes<W, kLength, Levels>(c, l, load<W>(s.d + l), codes);
      }
      for (int g = 0; g < used; ++g) {
        int scales[kSubs];
        for (int j = 0; j < kSubs; ++j) scales[j] = static_cast<int>(best_integer[g * kSubs + j]);
        typename Format::Block b;
        Format::pack(b, float_to_half(best_d[g]), scales, codes, g * kSubs);
        std::memcpy(dst, &b, sizeof b);
        dst += sizeof b;
      }
    }
  }
};

}  // namespace

void encode_q3_k(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeSubScales<Q3_KFormat>>(src, importance, dst, n);
}
void encode_q6_k(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeSubScales<Q6_KFormat>>(src, importance, dst, n);
}
void encode_iq4_xs(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeSubScales<Iq4XsFormat>>(src, importance, dst, n);
}

}  // namespace mt
