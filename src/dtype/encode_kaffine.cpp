// Encoders of the two-level formats with mins: Q2_K, Q4_K, Q5_K. A weight is
// d * scale * code - dmin * min, scale and min small non-negative integers of its sub-block.
// Lanes are sub-blocks.
#include <algorithm>
#include <cmath>

#include "dtype/blocks.h"
#include "dtype/codec.h"
#include "dtype/dtype.h"
#include "dtype/fit_affine.h"
#include "dtype/kquants.h"
#include "dtype/recover_affine.h"

namespace mt {
namespace {

using Codes = float (*)[kLanes];

struct Q2_KFormat {
  using Block = block::Q2_K;
  static constexpr int kLength = 16, kSubs = 16, kTop = 3, kLimit = 15;
  static constexpr float kCuts[] = {0, -0.25f, -0.5f, -0.8f, 0.4f};
  static constexpr float kStretches[] = {1.0f, 0.93f, 1.07f};
  static constexpr int kRounds = 2;
  static void pack(Block& b, const int* scales, const int* mins, Codes codes, int lane) {
    for (int sub = 0; sub < 16; ++sub) {
      b.scales[sub] = static_cast<uint8_t>(scales[sub] | mins[sub] << 4);
      for (int i = 0; i < 16; ++i) {
        uint8_t& at = b.qs[32 * (sub / 8) + 16 * (sub % 2) + i];
        at = static_cast<uint8_t>(at | static_cast<unsigned>(codes[i][lane + sub])
                                           << (2 * (sub % 8 / 2)));
      }
    }
  }
};

template <class B>
void pack_low_nibbles(B& b, const int* scales, const int* mins, Codes codes, int lane) {
  pack_scales_mins(scales, mins, b.scales);
  for (int sub = 0; sub < 8; ++sub) {
    for (int i = 0; i < 32; ++i) {
      uint8_t& at = b.qs[32 * (sub / 2) + i];
      at = static_cast<uint8_t>(at | (static_cast<unsigned>(codes[i][lane + sub]) & 15)
                                         << (4 * (sub % 2)));
    }
  }
}

struct Q4_KFormat {
  using Block = block::Q4_K;
  static constexpr int kLength = 32, kSubs = 8, kTop = 15, kLimit = 63;
  static constexpr float kCuts[] = {0, -0.5f, 0.25f, -1, -1.75f};
  static constexpr float kStretches[] = {1.0f, 0.985f, 1.015f};
  static constexpr int kRounds = 2;
  static void pack(Block& b, const int* scales, const int* mins, Codes codes, int lane) {
    pack_low_nibbles(b, scales, mins, codes, lane);
  }
};

struct Q5_KFormat {
  using Block = block::Q5_K;
  static constexpr int kLength = 32, kSubs = 8, kTop = 31, kLimit = 63;
  static constexpr float kCuts[] = {0, -0.5f, 0.25f, -1, -1.75f};
  static constexpr float kStretches[] = {1.0f, 0.993f, 1.007f};
  static constexpr int kRounds = 2;
  static void pack(Block& b, const int* scales, const int* mins, Codes codes, int lane) {
    pack_low_nibbles(b, scales, mins, codes, lane);
    for (int sub = 0; sub < 8; ++sub) {
      for (int i = 0; i < 32; ++i) {
        b.qh[i] =
            static_cast<uint8_t>(b.qh[i] | static_cast<unsigned>(codes[i][lane + sub]) >> 4 << sub);
      }
    }
  }
};

// 16 sub-blocks' search state, lane by lane; a super-block owns kSubs consecutive lanes.
struct alignas(64) SubPairs {
  float wanted_scale[kLanes], wanted_min[kLanes];  // what a sub-block would choose for itself
  float spare_low[kLanes], spare_high[kLanes];     // codes that it leaves unused at either end
  float curvature[kLanes], weight[kLanes];         // what squared deviations from them cost
  float d[kLanes], dmin[kLanes];                   // the super-block's pair, repeated
  float scale[kLanes], min[kLanes];                // integers
  float error[kLanes];
  float q1[kLanes], q2[kLanes], x1[kLanes], xq[kLanes];  // sums of w q, w q^2, w x, w x q
};

template <int W>
struct PairSums {
  VF<W> error, q1, q2, x1, xq;
};

template <int W, int N, int Top>
MT_INLINE PairSums<W> sums_at(const Columns<N>& c, int lane, VF<W> scale, VF<W> min) {
  const VF<W> inverse = inverse_or_zero<W>(scale);
  const VF<W> zero = splat<W>(0.0f);
  PairSums<W> s{zero, zero, zero, zero, zero};
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const VF<W> x = load<W>(&c.x[i][lane]), w = load<W>(&c.w[i][lane]);
    const VF<W> q = nearest_code<W, Top>((x + min) * inverse);
    const VF<W> e = x - (scale * q - min);
    const VF<W> wq = w * q;
    s.error += w * (e * e);
    s.q1 += wq;
    s.q2 += wq * q;
    s.x1 += w * x;
    s.xq += wq * x;
  }
  return s;
}

// sum w (x - scale q + min)^2; *free_min gets the min that these codes would like best.
template <int W, int N, int Top>
MT_INLINE VF<W> error_at(const Columns<N>& c, int lane, VF<W> weight, VF<W> scale, VF<W> min,
                         VF<W>* free_min) {
  const VF<W> inverse = inverse_or_zero<W>(scale);
  VF<W> error = splat<W>(0.0f), sum = error;
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const VF<W> x = load<W>(&c.x[i][lane]), w = load<W>(&c.w[i][lane]);
    const VF<W> e = x - (scale * nearest_code<W, Top>((x + min) * inverse) - min);
    const VF<W> we = w * e;
    error += we * e;
    sum += we;
  }
  *free_min = min - sum / weight;
  return error;
}

// Where a sub-block would like an offset above zero, which the format does not have: the scale
// alone, fitted without offset.
template <int W, int N, int Top>
MT_INLINE VF<W> scale_without_min(const Columns<N>& c, int lane, VF<W> high) {
  VF<W> d = high * (1.0f / static_cast<float>(Top));
  for (int round = 0; round < 3; ++round) {
    const PairSums<W> s = sums_at<W, N, Top>(c, lane, d, splat<W>(0.0f));
    d = ratio_or_zero<W>(s.xq, s.q2);
  }
  return d;
}

// Keeps the kStarts candidates of least loss, best first.
constexpr int kStarts = 3;
struct Ranking {
  float steps[kStarts] = {}, losses[kStarts] = {3e38f, 3e38f, 3e38f};
  void add(float step, float loss) {
    for (int k = 0; k < kStarts; ++k) {
      if (loss >= losses[k]) continue;
      for (int m = kStarts - 1; m > k; --m) {
        losses[m] = losses[m - 1];
        steps[m] = steps[m - 1];
      }
      losses[k] = loss;
      steps[k] = step;
      return;
    }
  }
};

MT_INLINE float rounding_loss(float wanted, float step, float inverse, float limit) {
  const float q = (wanted * inverse + 12582912.0f) - 12582912.0f;
  const float e = wanted - step * (q < limit ? q : limit);
  return e * e;
}

// Candidates put the largest wanted number on a whole one near the limit, so that numbers which
// came from this format are found again.
template <int Limit>
MT_INLINE float candidate(int t) {
  constexpr float kApart = Limit < 20 ? 0.5f : 1.0f;
  return static_cast<float>(Limit) + kApart * static_cast<float>(1 - t);
}

// Super-scales d, ranked by the cost-weighted rounding error of the wanted scales.
template <int Limit>
MT_INLINE Ranking rank_scales(const SubPairs& s, int first, int count) {
  Ranking ranking;
  float largest = 0.0f;
  for (int j = first; j < first + count; ++j) largest = std::max(largest, s.wanted_scale[j]);
  if (!(largest > 1e-28f)) return ranking;
  for (int t = 0; t < 16; ++t) {
    const float step = largest / candidate<Limit>(t);
    const float inverse = 1.0f / step;
    float loss = 0.0f;
    for (int j = first; j < first + count; ++j) {
      loss += s.curvature[j] * rounding_loss(s.wanted_scale[j], step, inverse, Limit);
    }
    ranking.add(step, loss);
  }
  return ranking;
}

// Super-scales dmin likewise. A sub-block that leaves codes unused at one end may as well have its
// min a step lower or higher: the nearest of these counts.
template <int Limit>
MT_INLINE Ranking rank_mins(const SubPairs& s, int first, int count) {
  Ranking ranking;
  int top = first;
  for (int j = first; j < first + count; ++j) {
    if (s.wanted_min[j] > s.wanted_min[top]) top = j;
  }
  for (int shift = -1; shift <= 1; ++shift) {
    if ((shift < 0 && s.spare_low[top] < 1.0f) || (shift > 0 && s.spare_high[top] < 1.0f)) continue;
    const float largest = s.wanted_min[top] + static_cast<float>(shift) * s.wanted_scale[top];
    if (!(largest > 1e-28f)) continue;
    for (int t = 0; t < 12; ++t) {
      const float step = largest / candidate<Limit>(t);
      const float inverse = 1.0f / step;
      float loss = 0.0f;
      for (int j = first; j < first + count; ++j) {
        float least = rounding_loss(s.wanted_min[j], step, inverse, Limit);
        const float lower = s.wanted_min[j] - s.wanted_scale[j];
        if (s.spare_low[j] >= 1.0f && lower >= 0.0f) {
          least = std::min(least, rounding_loss(lower, step, inverse, Limit));
        }
        if (s.spare_high[j] >= 1.0f) {
          const float higher = s.wanted_min[j] + s.wanted_scale[j];
          least = std::min(least, rounding_loss(higher, step, inverse, Limit));
        }
        loss += s.weight[j] * least;
      }
      ranking.add(step, loss);
    }
  }
  return ranking;
}

// Given s.d and s.dmin: each sub-block tries three scales around `around` and, for each, the three
// mins around the one its codes ask for.
template <int W, class Format>
MT_INLINE void choose_pairs(const Columns<Format::kLength>& c, SubPairs& s, int lane, VF<W> around,
                            VF<W> near_min) {
  constexpr int kLength = Format::kLength, kTop = Format::kTop;
  const VF<W> d = load<W>(s.d + lane), dmin = load<W>(s.dmin + lane);
  const VF<W> weight = load<W>(s.weight + lane);
  const VF<W> zero = splat<W>(0.0f), limit = splat<W>(Format::kLimit);
  const VF<W> inverse_dmin = inverse_or_zero<W>(dmin);
  VF<W> best_error = splat<W>(3e38f), best_scale = zero, best_min = zero;
  for (int k = -1; k <= 1; ++k) {
    const VF<W> scale = vmin<W>(vmax<W>(around + static_cast<float>(k), zero), limit);
    VF<W> wish = near_min;
    error_at<W, kLength, kTop>(c, lane, weight, d * scale, near_min, &wish);
    const VF<W> middle = vround<W>(vmin<W>(vmax<W>(wish * inverse_dmin, zero), limit));
    for (int j = -1; j <= 1; ++j) {
      const VF<W> min = vmin<W>(vmax<W>(middle + static_cast<float>(j), zero), limit);
      VF<W> ignored;
      const VF<W> error =
          error_at<W, kLength, kTop>(c, lane, weight, d * scale, dmin * min, &ignored);
      const VI<W> better = error < best_error;
      best_error = better ? error : best_error;
      best_scale = better ? scale : best_scale;
      best_min = better ? min : best_min;
    }
  }
  const PairSums<W> sums = sums_at<W, kLength, kTop>(c, lane, d * best_scale, dmin * best_min);
  store<W>(s.scale + lane, best_scale);
  store<W>(s.min + lane, best_min);
  store<W>(s.error + lane, sums.error);
  store<W>(s.q1 + lane, sums.q1);
  store<W>(s.q2 + lane, sums.q2);
  store<W>(s.x1 + lane, sums.x1);
  store<W>(s.xq + lane, sums.xq);
}

// Weighted least squares for (d, dmin) of lanes first .. first+count-1 under their integers and
// codes. The difference of large products needs doubles.
inline void refit_pair(const SubPairs& s, int first, int count, float& d, float& dmin) {
  double a = 0, b = 0, m = 0, rd = 0, rm = 0;
  for (int j = first; j < first + count; ++j) {
    const double scale = s.scale[j], min = s.min[j];
    a += scale * scale * s.q2[j];
    b += scale * min * s.q1[j];
    m += min * min * s.weight[j];
    rd += scale * s.xq[j];
    rm += min * s.x1[j];
  }
  const double determinant = a * m - b * b;
  if (determinant > 1e-9 * a * m) {
    d = static_cast<float>((rd * m - rm * b) / determinant);
    dmin = static_cast<float>((rd * b - rm * a) / determinant);
  } else if (a > 0) {
    d = static_cast<float>((rd + b * static_cast<double>(dmin)) / a);
  }
}

template <class Format>
struct EncodeSubPairs {
  static constexpr int kLength = Format::kLength, kSubs = Format::kSubs, kTop = Format::kTop;
  static constexpr int kSupers = kLanes / kSubs;

  // What each sub-block would choose for itself.
  template <int W>
  static MT_INLINE void fit_alone(const Columns<kLength>& c, SubPairs& s, int l) {
    const AffineFacts<W> facts = affine_facts<W, kLength>(c, l);
    const AffineFit<W> fit = search_affine<W, kLength, kTop, Format>(c, l, facts);
    const VF<W> alone = scale_without_min<W, kLength, kTop>(c, l, facts.high);
    const VI<W> has_min = fit.m < 0.0f;
    const VF<W> scale = has_min ? fit.d : alone;
    store<W>(s.wanted_scale + l, vmax<W>(scale, splat<W>(0.0f)));
    store<W>(s.wanted_min + l, has_min ? -fit.m : splat<W>(0.0f));
    store<W>(s.weight + l, facts.weight);
    VF<W> low = splat<W>(kTop), high = splat<W>(0.0f);
    for (int i = 0; i < kLength; ++i) {
      const VF<W> q =
          nearest_code<W, kTop>((load<W>(&c.x[i][l]) - fit.m) * inverse_or_zero<W>(scale));
      low = vmin<W>(low, q);
      high = vmax<W>(high, q);
    }
    store<W>(s.spare_low + l, has_min ? low : splat<W>(0.0f));
    store<W>(s.spare_high + l, has_min ? static_cast<float>(kTop) - high : splat<W>(0.0f));
    const VF<W> explained = has_min ? fit.gain : scale * scale * facts.weight;
    store<W>(s.curvature + l, ratio_or_zero<W>(explained, scale * scale));
  }

  template <int W>
  static MT_INLINE void run(const float* src, const float* importance, std::byte* dst, int64_t n) {
    Columns<kLength> c;
    SubPairs s;
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
                      65504.0f * kTop * kLimitOfScale);
          } else {
            clear_lane(c, g * kSubs + j);
          }
        }
      }
      for (int l = 0; l < kLanes; l += W) fit_alone<W>(c, s, l);

      Ranking scales_of[kSupers], mins_of[kSupers];
      float best_error[kSupers], best_d[kSupers], best_dmin[kSupers];
      float best_scale[kLanes] = {}, best_min[kLanes] = {};
      for (int g = 0; g < kSupers; ++g) {
        scales_of[g] = rank_scales<Format::kLimit>(s, g * kSubs, kSubs);
        mins_of[g] = rank_mins<Format::kLimit>(s, g * kSubs, kSubs);
        best_error[g] = 3e38f;
        best_d[g] = best_dmin[g] = 0.0f;
      }
      for (int start = 0; start < kStarts; ++start) {
        float d[kSupers], dmin[kSupers];
        for (int g = 0; g < kSupers; ++g) {
          // The best pair; then the second of either with the best of the other.
          d[g] = scales_of[g].steps[start == 2 ? 1 : 0];
          dmin[g] = mins_of[g].steps[start == 1 ? 1 : 0];
        }
        for (int round = 0; round < 3; ++round) {
          for (int l = 0; l < kLanes; ++l) {
            s.d[l] = d[l / kSubs];
            s.dmin[l] = dmin[l / kSubs];
          }
          for (int l = 0; l < kLanes; l += W) {
            const VF<W> half_d = round_to_half<W>(load<W>(s.d + l));
            const VF<W> half_dmin = round_to_half<W>(load<W>(s.dmin + l));
            store<W>(s.d + l, half_d);
            store<W>(s.dmin + l, half_dmin);
            const VF<W> around =
                round == 0 ? vround<W>(load<W>(s.wanted_scale + l) * inverse_or_zero<W>(half_d))
                           : load<W>(s.scale + l);
            const VF<W> near_min =
                round == 0 ? load<W>(s.wanted_min + l) : half_dmin * load<W>(s.min + l);
            choose_pairs<W, Format>(c, s, l, around, near_min);
          }
          for (int g = 0; g < kSupers; ++g) {
            float error = 0.0f;
            for (int j = g * kSubs; j < (g + 1) * kSubs; ++j) error += s.error[j];
            if (error < best_error[g]) {
              best_error[g] = error;
              best_d[g] = s.d[g * kSubs];
              best_dmin[g] = s.dmin[g * kSubs];
              for (int j = g * kSubs; j < (g + 1) * kSubs; ++j) {
                best_scale[j] = s.scale[j];
                best_min[j] = s.min[j];
              }
            }
            refit_pair(s, g * kSubs, kSubs, d[g], dmin[g]);
          }
        }
      }

      for (int g = 0; g < used; ++g) {
        float d, dmin, scales[kSubs], mins[kSubs];
        if (!recover_sub_pairs<W>(src + (first + g) * 256, kSubs, kLength, kTop, Format::kLimit, &d,
                                  &dmin, scales, mins))
          continue;
        best_d[g] = d;
        best_dmin[g] = dmin;
        std::copy(scales, scales + kSubs, best_scale + g * kSubs);
        std::copy(mins, mins + kSubs, best_min + g * kSubs);
      }
      for (int l = 0; l < kLanes; ++l) {
        s.scale[l] = best_d[l / kSubs] * best_scale[l];
        s.min[l] = best_dmin[l / kSubs] * best_min[l];
      }
      for (int l = 0; l < kLanes; l += W) {
        const VF<W> inverse = inverse_or_zero<W>(load<W>(s.scale + l)), min = load<W>(s.min + l);
        for (int i = 0; i < kLength; ++i) {
          store<W>(&codes[i][l], nearest_code<W, kTop>((load<W>(&c.x[i][l]) + min) * inverse));
        }
      }
      for (int g = 0; g < used; ++g) {
        int scales[kSubs], mins[kSubs];
        for (int j = 0; j < kSubs; ++j) {
          scales[j] = static_cast<int>(best_scale[g * kSubs + j]);
          mins[j] = static_cast<int>(best_min[g * kSubs + j]);
        }
        typename Format::Block b{};
        b.d = float_to_half(best_d[g]);
        b.dmin = float_to_half(best_dmin[g]);
        Format::pack(b, scales, mins, codes, g * kSubs);
        std::memcpy(dst, &b, sizeof b);
        dst += sizeof b;
      }
    }
  }

  static constexpr float kLimitOfScale = Format::kLimit;
};

}  // namespace

void encode_q2_k(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeSubPairs<Q2_KFormat>>(src, importance, dst, n);
}
void encode_q4_k(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeSubPairs<Q4_KFormat>>(src, importance, dst, n);
}
void encode_q5_k(const float* src, const float* importance, std::byte* dst, int64_t n) {
  run_widest<EncodeSubPairs<Q5_KFormat>>(src, importance, dst, n);
}

}  // namespace mt
