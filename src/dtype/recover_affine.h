#pragma once
#include "dtype/recover.h"

// Grid recovery for formats with offsets: x = d * code + m. The weights' number of steps from the
// lowest to the highest is guessed; each guess fixes all codes but for a common shift, and then the
// roundings of the weights bound d and m by a small polygon.
namespace mt {

inline constexpr int kMostCodes = 32;

// A guess that holds: codes `steps` apart at most, the step d within a range.
struct Steps {
  int count;
  Range d;
  bool allows(double step) const { return step >= d.low && step <= d.high; }
};

// Per code the highest lower bound and the lowest upper bound of what its weights were.
struct CodeBounds {
  double low[kMostCodes], high[kMostCodes];
  bool used[kMostCodes];
};
MT_INLINE void bound_codes(const float* x, int n, float lowest, float range, int steps,
                           Rounding rounding, CodeBounds& bounds) {
  for (int c = 0; c <= steps; ++c) bounds.used[c] = false;
  const double inverse = steps / static_cast<double>(range);
  for (int i = 0; i < n; ++i) {
    const double y = (static_cast<double>(x[i]) - static_cast<double>(lowest)) * inverse;
    const int c = static_cast<int>(y + 0.5);
    const Range own = before_rounding(x[i], rounding);
    if (!bounds.used[c]) {
      bounds.used[c] = true;
      bounds.low[c] = own.low;
      bounds.high[c] = own.high;
    } else {
      bounds.low[c] = std::max(bounds.low[c], own.low);
      bounds.high[c] = std::min(bounds.high[c], own.high);
    }
  }
}

// The steps d for which some offset exists: every pair of codes bounds it.
MT_INLINE Range step_range(const CodeBounds& bounds, int steps) {
  Range d{0.0, 1e300};
  for (int a = 0; a <= steps; ++a) {
    if (!bounds.used[a]) continue;
    if (bounds.low[a] > bounds.high[a]) return {1.0, 0.0};
    for (int b = a + 1; b <= steps; ++b) {
      if (!bounds.used[b]) continue;
      const double apart = b - a;
      d = meet(
          d, {(bounds.low[b] - bounds.high[a]) / apart, (bounds.high[b] - bounds.low[a]) / apart});
    }
  }
  return d;
}
// The values of the lowest code under step d.
MT_INLINE Range offset_range(const CodeBounds& bounds, int steps, double d) {
  Range m{-1e300, 1e300};
  for (int c = 0; c <= steps; ++c) {
    if (bounds.used[c]) m = meet(m, {bounds.low[c] - c * d, bounds.high[c] - c * d});
  }
  return m;
}

// Numbers of steps, at most `top`, under which all weights lie on codes. n weights from `lowest`,
// over `range` > 0. Returns how many of at most top.
template <int W>
MT_INLINE int possible_steps(const float* x, int n, float lowest, float range, int top,
                             Rounding rounding, Steps* out) {
  constexpr int kVectors = kMostCodes / W;
  const float gap_low = half_gap(lowest, rounding), gap_high = half_gap(lowest + range, rounding);
  VI<W> alive[kVectors];
  VF<W> steps[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    for (int l = 0; l < W; ++l) steps[v][l] = static_cast<float>(v * W + l);
    alive[v] = (steps[v] > 0.0f) & (steps[v] <= static_cast<float>(top));
  }
  for (int i = 0; i < n; ++i) {
    const float share = (x[i] - lowest) / range;
    // f32 itself blurs the share a little.
    const float blur =
        1.01f * (half_gap(x[i], rounding) + gap_low + share * (gap_low + gap_high)) / range + 3e-7f;
    VI<W> any{};
    for (int v = 0; v < kVectors; ++v) {
      const VF<W> y = steps[v] * share;
      alive[v] &= vabs<W>(y - vround<W>(y)) <= steps[v] * blur;
      any |= alive[v];
    }
    if (smallest_lane<W>(any) == 0) return 0;
  }
  int count = 0;
  for (int k = 1; k <= top; ++k) {
    if (alive[k / W][k % W] == 0) continue;
    CodeBounds bounds;
    bound_codes(x, n, lowest, range, k, rounding, bounds);
    const Range d = step_range(bounds, k);
    if (d.low <= d.high && d.high > 0.0) out[count++] = {k, d};
  }
  return count;
}

struct RecoveredPair {
  float d = 0.0f, m = 0.0f;
  bool found = false;
};

// d * code + m, code 0..top, both f16 numbers, that give all n weights, rounded as they are.
template <int W>
MT_INLINE RecoveredPair recover_affine(const float* x, int n, int top) {
  float lowest = x[0], highest = x[0];
  for (int i = 0; i < n; ++i) {
    if (!std::isfinite(x[i])) return {};
    lowest = std::min(lowest, x[i]);
    highest = std::max(highest, x[i]);
  }
  const float range = highest - lowest;
  if (!(range > 0.0f)) {
    const bool half = half_value(float_to_half(lowest)) == lowest;
    return half ? RecoveredPair{0.0f, lowest, true} : RecoveredPair{};
  }
  if (!std::isfinite(range)) return {};
  const Rounding coarsest = coarsest_rounding(x, n);
  for (const Rounding rounding : kRoundings) {
    if (rounding != Rounding::kF32 && rounding != coarsest) continue;
    Steps guesses[kMostCodes];
    const int count = possible_steps<W>(x, n, lowest, range, top, rounding, guesses);
    RecoveredPair best;
    double least = 1e300;
    int left = kMostTried;
    for (int g = 0; g < count; ++g) {
      const int steps = guesses[g].count;
      CodeBounds bounds;
      bound_codes(x, n, lowest, range, steps, rounding, bounds);
      auto try_pair = [&](float d, float m) {
        double error = 0.0;
        for (int i = 0; i < n; ++i) {
          const float code = std::nearbyint((x[i] - m) / d);
          const float v = d * code + m;
          if (!(code >= 0.0f && code <= static_cast<float>(top)) || rounded(v, rounding) != x[i]) {
            return --left < 0;
          }
          const double e = static_cast<double>(x[i]) - static_cast<double>(v);
          error += e * e;
        }
        if (error < least) {
          least = error;
          best = {d, m, true};
        }
        return --left < 0;
      };
      any_half(guesses[g].d, [&](float d) {
        const Range offset = offset_range(bounds, steps, d);
        if (!(offset.low <= offset.high)) return false;
        for (int away = 0; away + steps <= top; ++away) {
          // Codes may also count down from an offset above all weights.
          const double below = away * static_cast<double>(d);
          const double above = (away + steps) * static_cast<double>(d);
          const Range m{offset.low - below, offset.high - below};
          const Range m_above{offset.low + above, offset.high + above};
          if (any_half(m, [&](float v) { return try_pair(d, v); })) return true;
          if (m.low <= 0.0 && m.high >= 0.0 && try_pair(d, 0.0f)) return true;
          if (any_half(m_above, [&](float v) { return try_pair(-d, v); })) return true;
        }
        return false;
      });
    }
    if (best.found) return best;
  }
  return {};
}

// d * scale * code - dmin * min, scales and mins integers up to `limit`, codes up to `top`, for
// n_subs times `length` weights. False where the weights are on no such grid, or on one that their
// rounding blurs.
template <int W>
MT_INLINE bool recover_sub_pairs(const float* x, int n_subs, int length, int top, int limit,
                                 float* d_out, float* dmin_out, float* scales, float* mins) {
  constexpr int kMost = 4, kOptions = 24;
  float lowest[16], range[16];
  for (int j = 0; j < n_subs; ++j) {
    const float* sub = x + j * length;
    float low = sub[0], high = sub[0];
    for (int i = 0; i < length; ++i) {
      if (!std::isfinite(sub[i])) return false;
      low = std::min(low, sub[i]);
      high = std::max(high, sub[i]);
    }
    lowest[j] = low;
    range[j] = high - low;
    if (!std::isfinite(range[j])) return false;
  }
  const Rounding coarsest = coarsest_rounding(x, n_subs * length);
  for (const Rounding rounding : kRoundings) {
    if (rounding != Rounding::kF32 && rounding != coarsest) continue;
    Steps guesses[16][kMostCodes];
    int counts[16] = {};
    int lead = -1;
    bool all_fit = true;
    for (int j = 0; j < n_subs && all_fit; ++j) {
      if (range[j] == 0.0f) continue;
      counts[j] = std::min(kMost, possible_steps<W>(x + j * length, length, lowest[j], range[j],
                                                    top, rounding, guesses[j]));
      all_fit = counts[j] > 0;
      if (lead < 0 || range[j] > range[lead]) lead = j;
    }
    if (!all_fit || lead < 0) continue;

    auto reproduced = [&](float d, float dmin) {
      for (int j = 0; j < n_subs; ++j) {
        const float scale = d * scales[j], min = dmin * mins[j];
        for (int i = j * length; i < (j + 1) * length; ++i) {
          const float code = scale == 0.0f ? 0.0f : std::nearbyint((x[i] + min) / scale);
          if (!(code >= 0.0f && code <= static_cast<float>(top)) ||
              rounded(scale * code - min, rounding) != x[i])
            return false;
        }
      }
      *d_out = d;
      *dmin_out = dmin;
      return true;
    };
    // What d * scale leaves possible for a sub-block: its scale, and the min then.
    struct Option {
      float scale;
      Range min;
    };
    int left = 4 * kMostTried, left_steps = kMostTried;
    auto with_step = [&](float d) {
      Option options[16][kOptions];
      int n_options[16] = {};
      int narrow = -1;  // fewest options, none of them without a min
      if (--left_steps < 0) return true;
      auto scale_of = [&](const Steps& guess) {
        const double scale = std::nearbyint(0.5 * (guess.d.low + guess.d.high) / d);
        return scale >= 1.0 && scale <= limit && guess.allows(scale * d) ? scale : 0.0;
      };
      for (int j = 0; j < n_subs; ++j) {
        bool any = range[j] == 0.0f;
        for (int k = 0; k < counts[j]; ++k) any = any || scale_of(guesses[j][k]) != 0.0;
        if (!any) return false;
      }
      for (int j = 0; j < n_subs; ++j) {
        if (range[j] == 0.0f) continue;
        bool zero = false;
        for (int k = 0; k < counts[j]; ++k) {
          const Steps& guess = guesses[j][k];
          const double scale = scale_of(guess), step = scale * d;
          if (scale == 0.0) continue;
          CodeBounds bounds;
          bound_codes(x + j * length, length, lowest[j], range[j], guess.count, rounding, bounds);
          const Range offset = offset_range(bounds, guess.count, step);
          if (!(offset.low <= offset.high)) continue;
          for (int away = 0; away + guess.count <= top; ++away) {
            const Range min{away * step - offset.high, away * step - offset.low};
            if (min.high < 0.0 || n_options[j] == kOptions) continue;
            options[j][n_options[j]++] = {static_cast<float>(scale), min};
            zero = zero || min.low <= 0.0;
          }
        }
        if (n_options[j] == 0) return false;
        if (!zero && (narrow < 0 || n_options[j] < n_options[narrow])) narrow = j;
      }
      auto with_min = [&](float dmin) {
        const double inverse = dmin == 0.0f ? 0.0 : 1.0 / static_cast<double>(dmin);
        auto whole = [&](Range wanted, float* min) {
          const double q = std::clamp(std::nearbyint(0.5 * (wanted.low + wanted.high) * inverse),
                                      0.0, static_cast<double>(limit));
          *min = static_cast<float>(q);
          const double value = q * static_cast<double>(dmin);
          return value >= wanted.low && value <= wanted.high;
        };
        for (int j = 0; j < n_subs; ++j) {
          bool found = false;
          for (int k = 0; k < n_options[j] && !found; ++k) {
            scales[j] = options[j][k].scale;
            found = whole(options[j][k].min, &mins[j]);
          }
          if (range[j] == 0.0f) {
            // One value: the min alone, or a code of any scale with it.
            const Range v = before_rounding(lowest[j], rounding);
            for (int s = 0; s <= limit && !found; ++s) {
              for (int code = 0; code <= (s == 0 ? 0 : top) && !found; ++code) {
                const double up = static_cast<double>(d) * s * code;
                scales[j] = static_cast<float>(s);
                found = whole({up - v.high, up - v.low}, &mins[j]);
              }
            }
          }
          if (!found) return --left < 0;
        }
        return reproduced(d, dmin) || --left < 0;
      };
      if (narrow < 0) return with_min(0.0f);
      for (int k = 0; k < n_options[narrow]; ++k) {
        for (int min = limit; min >= 1; --min) {
          if (any_half(over(options[narrow][k].min, min), with_min)) return true;
        }
      }
      return false;
    };
    for (int k = 0; k < counts[lead]; ++k) {
      // The largest sub-block mostly has the largest scale.
      for (int scale = limit; scale >= 1; --scale) {
        if (any_half(over(guesses[lead][k].d, scale), with_step))
          return left >= 0 && left_steps >= 0;
      }
    }
  }
  return false;
}

}  // namespace mt
