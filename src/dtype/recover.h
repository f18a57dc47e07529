#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "dtype/dtype.h"
#include "dtype/half.h"
#include "dtype/lanes.h"

// Weights that came from a format: d * level, perhaps rounded to F16 or BF16 on the way. Every
// weight then bounds the scale that it came from; the scales that all of them allow are a short
// range, and the f16 number in it is taken. (Checkpoints trained for a format may have scales that
// are no f16 number: then the range is known and the nearest f16 number is offered.)
namespace mt {

// What a value was rounded to. The finer the rounding, the narrower the ranges: tried in this
// order.
enum class Rounding { kF32, kF16, kBf16 };
inline constexpr Rounding kRoundings[] = {Rounding::kF32, Rounding::kF16, Rounding::kBf16};

struct Range {
  double low, high;
};
MT_INLINE Range meet(Range a, Range b) {
  return {a.low > b.low ? a.low : b.low, a.high < b.high ? a.high : b.high};
}
MT_INLINE Range over(Range a, double divisor) {
  const double x = a.low / divisor, y = a.high / divisor;
  return x < y ? Range{x, y} : Range{y, x};
}

MT_INLINE float rounded(float v, Rounding rounding) {
  switch (rounding) {
    case Rounding::kF32:
      return v;
    case Rounding::kF16:
      return half_value(float_to_half(v));
    case Rounding::kBf16:
      return bf16_value(float_to_bf16(v));
  }
  return v;
}

// The coarsest rounding under which all n values stay as they are. Not finite: not f16, at least.
MT_INLINE Rounding coarsest_rounding(const float* x, int n) {
  bool bf16 = true, f16 = true;
  for (int i = 0; i < n && (bf16 || f16); ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(x[i]);
    bf16 = bf16 && (bits & 0xffffu) == 0;
    if (f16 && ((bits & 0x1fffu) != 0 || (bits << 1) < 0x71000000u || (bits << 1) > 0x8f000000u)) {
      f16 = half_value(float_to_half(x[i])) == x[i];
    }
  }
  return bf16 ? Rounding::kBf16 : f16 ? Rounding::kF16 : Rounding::kF32;
}

// Half the distance of numbers near x, at most: what rounding may have moved it by.
MT_INLINE float half_gap(float x, Rounding rounding) {
  const float power = std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0x7f800000u);
  switch (rounding) {
    case Rounding::kF32:
      return power * 0x1p-24f;
    case Rounding::kF16:
      return (power > 0x1p-14f ? power : 0x1p-14f) * 0x1p-11f;
    case Rounding::kBf16:
      return power * 0x1p-8f;
  }
  return 0.0f;
}
MT_INLINE float relative_gap(Rounding rounding) {
  return rounding == Rounding::kF32 ? 0x1p-24f : rounding == Rounding::kF16 ? 0x1p-11f : 0x1p-8f;
}
// What x was. A little wider, since decoders round to f32 first; whoever finds a scale checks it.
MT_INLINE Range before_rounding(float x, Rounding rounding) {
  const double gap = half_gap(x, rounding) * (1.0 + 0x1p-12);
  return {static_cast<double>(x) - gap, static_cast<double>(x) + gap};
}

// Calls visit(d) for f16 numbers in a range on one side of zero, at most 64 of them, until it says
// true. Returns whether it did.
template <class Visit>
MT_INLINE bool any_half(Range range, Visit visit) {
  const bool negative = range.high < 0.0;
  const double low = negative ? -range.high : range.low;
  const double high = negative ? -range.low : range.high;
  if (!(low > 0.0) || !(high >= low) || low > 65504.0) return false;
  uint32_t h = float_to_half(static_cast<float>(low));
  if (h > 0) --h;
  for (int k = 0; k < 64 && h < 0x7c00u; ++k, ++h) {
    const float d = half_value(static_cast<uint16_t>(h));
    if (static_cast<double>(d) > high) break;
    if (static_cast<double>(d) < low) continue;
    if (visit(negative ? -d : d)) return true;
  }
  return false;
}

template <class Levels>
MT_INLINE float nearest_level(float y) {
  return Levels::template nearest<4>(splat<4>(y))[0];
}

// The levels on which the largest weight e may lie if all the others are to lie on levels too, but
// for what rounding did to either; numbers for Levels::at. Most weights leave none after the
// second.
template <int W, class Levels>
MT_INLINE int sieve_levels(const float* x, int n, float e, Rounding rounding, int* kept) {
  const float tolerance = 2.1f * relative_gap(rounding) + 1e-6f;
  const float smallest = rounding == Rounding::kF16 ? 0x1p-24f : 0.0f;
  constexpr int kVectors = (Levels::kSize + W - 1) / W;
  alignas(64) float factor[kVectors * W];
  for (int j = 0; j < kVectors * W; ++j) {
    const float level = j < Levels::kSize ? Levels::at(j) : 0.0f;
    factor[j] = level / e;
  }
  VI<W> alive[kVectors];
  for (int v = 0; v < kVectors; ++v) alive[v] = load<W>(factor + v * W) != 0.0f;
  for (int i = 0; i < n; ++i) {
    VI<W> any{};
    for (int v = 0; v < kVectors; ++v) {
      const VF<W> y = load<W>(factor + v * W) * x[i];
      alive[v] &= vabs<W>(y - Levels::template nearest<W>(y)) <=
                  vabs<W>(y) * tolerance + vabs<W>(load<W>(factor + v * W)) * smallest;
      any |= alive[v];
    }
    if (smallest_lane<W>(any) == 0) return 0;
  }
  int count = 0;
  for (int j = 0; j < Levels::kSize; ++j) {
    if (alive[j / W][j % W] != 0) kept[count++] = j;
  }
  return count;
}

// The scales under which e, the largest, comes from `level` and every weight from some level.
// Weights whose level is in doubt wait until the others have narrowed the range.
template <class Levels>
MT_INLINE bool scale_range(const float* x, int n, float e, float level, Rounding rounding,
                           Range& range) {
  range = over(before_rounding(e, rounding), static_cast<double>(level));
  for (int pass = 0; pass < 3; ++pass) {
    bool waiting = false;
    for (int i = 0; i < n; ++i) {
      const double middle = 0.5 * (range.low + range.high);
      const float y = static_cast<float>(static_cast<double>(x[i]) / middle);
      const float q = nearest_level<Levels>(y);
      const auto blur = static_cast<float>(0.5 * (range.high - range.low) / std::fabs(middle)) +
                        half_gap(x[i], rounding) / std::max(std::fabs(x[i]), 1e-37f);
      if (pass < 2 && std::fabs(y) * blur > 0.45f) {
        waiting = true;
        continue;
      }
      if (q == 0.0f) {
        if (x[i] != 0.0f) return false;
        continue;
      }
      range = meet(range, over(before_rounding(x[i], rounding), static_cast<double>(q)));
      if (!(range.low <= range.high)) return false;
    }
    if (!waiting) return true;
  }
  return true;
}

// Whether d times levels, rounded, are the weights; *error gets the squared distance from them
// before that rounding.
template <class Levels>
MT_INLINE bool reproduces(const float* x, int n, float d, Rounding rounding, double* error) {
  *error = 0.0;
  for (int i = 0; i < n; ++i) {
    const float v = d * nearest_level<Levels>(x[i] / d);
    if (rounded(v, rounding) != x[i]) return false;
    const double e = static_cast<double>(x[i]) - static_cast<double>(v);
    *error += e * e;
  }
  return true;
}

MT_INLINE float extreme_of(const float* x, int n) {
  float e = 0.0f;
  for (int i = 0; i < n; ++i) {
    if (std::fabs(x[i]) > std::fabs(e)) e = x[i];
  }
  return e;
}

// Super-scales tried for a super-block, so that weights on no common grid take bounded time.
inline constexpr int kMostTried = 500;

struct RecoveredScale {
  float d = 0.0f;           // an f16 number; 0: the weights are on no grid of these levels
  bool to_the_bit = false;  // the levels times d give the weights, rounded as they are
};

// One scale for n weights.
template <int W, class Levels>
MT_INLINE RecoveredScale recover_scale(const float* x, int n) {
  const float e = extreme_of(x, n);
  if (e == 0.0f || !std::isfinite(e)) return {};
  const Rounding coarsest = coarsest_rounding(x, n);
  // 11 bits of d times 8 of the level: with more, an f32 weight is no such product. (Spares trying
  // many levels; with few, scales that are no f16 number are found too.)
  if (Levels::kSize > 64 && coarsest == Rounding::kF32 && (std::bit_cast<uint32_t>(e) & 31u) != 0)
    return {};
  int kept[Levels::kSize];
  const int count = sieve_levels<W, Levels>(x, n, e, coarsest, kept);
  RecoveredScale fallback;
  for (const Rounding rounding : kRoundings) {
    if (count == 0 || (rounding != Rounding::kF32 && rounding != coarsest)) continue;
    for (int k = 0; k < count; ++k) {
      Range range;
      if (!scale_range<Levels>(x, n, e, Levels::at(kept[k]), rounding, range)) continue;
      float best = 0.0f;
      double least = 3e38;
      any_half(range, [&](float d) {
        double error;
        if (reproduces<Levels>(x, n, d, rounding, &error) && error < least) {
          least = error;
          best = d;
        }
        return false;
      });
      if (best != 0.0f) return {best, true};
      const float middle = static_cast<float>(0.5 * (range.low + range.high));
      const float near = half_value(float_to_half(middle));
      if (fallback.d == 0.0f && std::isfinite(near)) fallback.d = near;
    }
  }
  return fallback;
}

// Sub-scales d * integer, integers low .. high, for n_subs times `length` weights. False where the
// weights are on no such grid, or on one that their rounding blurs.
template <int W, class Levels>
MT_INLINE bool recover_sub_scales(const float* x, int n_subs, int length, int low, int high,
                                  float* d_out, float* integers) {
  constexpr int kMost = 8;
  float e[16];
  int kept[16][kMost], kept_count[16];
  const Rounding coarsest = coarsest_rounding(x, n_subs * length);
  bool any = false;
  for (int j = 0; j < n_subs; ++j) {
    const float* sub = x + j * length;
    e[j] = extreme_of(sub, length);
    if (!std::isfinite(e[j])) return false;
    if (e[j] == 0.0f) continue;
    int all[Levels::kSize];
    const int count = sieve_levels<W, Levels>(sub, length, e[j], coarsest, all);
    if (count == 0) return false;
    kept_count[j] = count < kMost ? count : kMost;
    for (int k = 0; k < kept_count[j]; ++k) kept[j][k] = all[k];
    any = true;
  }
  if (!any) return false;
  for (const Rounding rounding : kRoundings) {
    if (rounding != Rounding::kF32 && rounding != coarsest) continue;
    Range ranges[16][kMost];
    int counts[16] = {};
    int lead = -1;
    bool all_fit = true;
    for (int j = 0; j < n_subs && all_fit; ++j) {
      if (e[j] == 0.0f) continue;
      for (int k = 0; k < kept_count[j]; ++k) {
        Range& range = ranges[j][counts[j]];
        counts[j] += scale_range<Levels>(x + j * length, length, e[j], Levels::at(kept[j][k]),
                                         rounding, range)
                         ? 1
                         : 0;
      }
      all_fit = counts[j] > 0;
      if (lead < 0 || std::fabs(e[j]) > std::fabs(e[lead])) lead = j;
    }
    if (!all_fit) continue;
    int left = kMostTried;
    auto fits = [&](float d) {
      if (--left < 0) return true;
      for (int j = 0; j < n_subs; ++j) {
        integers[j] = 0.0f;
        if (e[j] == 0.0f) continue;
        bool found = false;
        for (int k = 0; k < counts[j] && !found; ++k) {
          const Range r = ranges[j][k];
          const double q = std::nearbyint(0.5 * (r.low + r.high) / static_cast<double>(d));
          const double scale = q * static_cast<double>(d);
          found = q >= low && q <= high && q != 0.0 && scale >= r.low && scale <= r.high;
          if (found) integers[j] = static_cast<float>(q);
        }
        double error;
        if (!found ||
            !reproduces<Levels>(x + j * length, length, d * integers[j], rounding, &error))
          return false;
      }
      *d_out = d;
      return true;
    };
    for (int k = 0; k < counts[lead]; ++k) {
      // The largest sub-block mostly has the largest integer.
      for (int s = low; s <= high; ++s) {
        const int integer = s <= 0 ? s : high + 1 - s;
        if (integer != 0 && any_half(over(ranges[lead][k], integer), fits)) return left >= 0;
      }
    }
  }
  return false;
}

}  // namespace mt
