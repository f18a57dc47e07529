#pragma once
#include "dtype/lanes.h"

// x ~ d * level: the search for the scale d of one column of weights, in every lane at once.
namespace mt {

// Levels that are consecutive integers Low..High; code = level - Low.
template <int Low, int High>
struct IntegerLevels {
  static constexpr float kLargest = -Low > High ? -Low : High;
  static constexpr int kSize = High - Low + 1;
  // All levels, those of largest magnitude first on either side.
  static constexpr float at(int i) {
    return static_cast<float>(i < -Low ? Low + i : High + -Low - i);
  }
  template <int W>
  static MT_INLINE VF<W> nearest(VF<W> y) {
    const VF<W> clamped =
        vmin<W>(vmax<W>(y, splat<W>(static_cast<float>(Low))), splat<W>(static_cast<float>(High)));
    return vround<W>(clamped);
  }
  template <int W>
  static MT_INLINE VF<W> code(VF<W> y) {
    return nearest<W>(y) - static_cast<float>(Low);
  }
};

// Any ascending list of levels; code = index.
template <class Table>
struct ListedLevels {
  static constexpr int kCount = static_cast<int>(std::size(Table::kLevels));
  static constexpr float kLargest = -Table::kLevels[0] > Table::kLevels[kCount - 1]
                                        ? -Table::kLevels[0]
                                        : Table::kLevels[kCount - 1];
  static constexpr int kSize = kCount;
  static constexpr float at(int i) { return Table::kLevels[i]; }
  template <int W>
  static MT_INLINE VF<W> nearest(VF<W> y) {
    VF<W> level = splat<W>(Table::kLevels[0]);
#pragma GCC unroll 16
    for (int i = 1; i < kCount; ++i) {
      const float middle = 0.5f * (Table::kLevels[i - 1] + Table::kLevels[i]);
      level = y > middle ? splat<W>(Table::kLevels[i]) : level;
    }
    return level;
  }
  template <int W>
  static MT_INLINE VF<W> code(VF<W> y) {
    VF<W> index = splat<W>(0.0f);
#pragma GCC unroll 16
    for (int i = 1; i < kCount; ++i) {
      const float middle = 0.5f * (Table::kLevels[i - 1] + Table::kLevels[i]);
      index = y > middle ? splat<W>(static_cast<float>(i)) : index;
    }
    return index;
  }
};

// The state of a search in W lanes: the best scale so far and what it explains of sum w x^2.
template <int W>
struct ScaleFit {
  VF<W> d, gain;
};

// Rounds all weights at scale d and refits: keeps (sum w x q)^2 / (sum w q^2) and its scale where
// that explains more than the best so far.
template <int W, int N, class Levels>
MT_INLINE VF<W> try_scale(const Columns<N>& c, int lane, VF<W> d, ScaleFit<W>& best) {
  const VF<W> inverse = inverse_or_zero<W>(d);
  VF<W> xq = splat<W>(0.0f), qq = splat<W>(0.0f);
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const VF<W> x = load<W>(&c.x[i][lane]), w = load<W>(&c.w[i][lane]);
    const VF<W> q = Levels::template nearest<W>(x * inverse);
    const VF<W> wq = w * q;
    xq += wq * x;
    qq += wq * q;
  }
  const VF<W> fitted = ratio_or_zero<W>(xq, qq);
  const VF<W> gain = fitted * xq;
  const VI<W> better = gain > best.gain;
  best.gain = better ? gain : best.gain;
  best.d = better ? fitted : best.d;
  return fitted;
}

// sum w (x - d q)^2 with q the nearest levels at the given d.
template <int W, int N, class Levels>
MT_INLINE VF<W> scale_error(const Columns<N>& c, int lane, VF<W> d) {
  const VF<W> inverse = inverse_or_zero<W>(d);
  VF<W> error = splat<W>(0.0f);
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const VF<W> x = load<W>(&c.x[i][lane]), w = load<W>(&c.w[i][lane]);
    const VF<W> e = x - d * Levels::template nearest<W>(x * inverse);
    error += w * (e * e);
  }
  return error;
}

// The element of largest magnitude, with its sign.
template <int W, int N>
MT_INLINE VF<W> extreme(const Columns<N>& c, int lane) {
  VF<W> e = load<W>(&c.x[0][lane]);
  for (int i = 1; i < N; ++i) {
    const VF<W> x = load<W>(&c.x[i][lane]);
    e = vabs<W>(x) > vabs<W>(e) ? x : e;
  }
  return e;
}

// Searches d over extreme / target for all of Targets::kTargets, then finer around the best, then
// by alternation. Where the weights lie on a grid of the format, one target hits it exactly.
template <int W, int N, class Levels, class Targets>
MT_INLINE ScaleFit<W> search_scale(const Columns<N>& c, int lane) {
  const VF<W> e = extreme<W, N>(c, lane);
  ScaleFit<W> best{splat<W>(0.0f), splat<W>(0.0f)};
  for (const float target : Targets::kTargets) {
    try_scale<W, N, Levels>(c, lane, e * (1.0f / target), best);
  }
  for (int round = 0; round < Targets::kFine; ++round) {
    const VF<W> centre = best.d;
    const float step = Targets::kFineStep / static_cast<float>(1 + 2 * round);
    for (int k = -3; k <= 3; ++k) {
      try_scale<W, N, Levels>(c, lane, centre * (1.0f + step * static_cast<float>(k)), best);
    }
  }
  return best;
}

// The best f16 scale near d, by the error of the weights re-rounded under it.
template <int W, int N, class Levels>
MT_INLINE VF<W> settle_half_scale(const Columns<N>& c, int lane, VF<W> d, VF<W>* error_out) {
  const VF<W> middle = round_to_half<W>(d);
  VF<W> best = middle;
  VF<W> best_error = scale_error<W, N, Levels>(c, lane, middle);
  for (int k = -1; k <= 1; k += 2) {
    const VF<W> near = round_to_half<W>(middle + static_cast<float>(k) * half_step<W>(middle));
    const VF<W> error = scale_error<W, N, Levels>(c, lane, near);
    const VI<W> better = error < best_error;
    best_error = better ? error : best_error;
    best = better ? near : best;
  }
  if (error_out != nullptr) *error_out = best_error;
  return best;
}

// Codes of all weights at scale d, as floats.
template <int W, int N, class Levels>
MT_INLINE void put_codes(const Columns<N>& c, int lane, VF<W> d, float (*codes)[kLanes]) {
  const VF<W> inverse = inverse_or_zero<W>(d);
  for (int i = 0; i < N; ++i) {
    store<W>(&codes[i][lane], Levels::template code<W>(load<W>(&c.x[i][lane]) * inverse));
  }
}

}  // namespace mt
