#pragma once
#include "dtype/lanes.h"

// x ~ d * code + m, code in 0..Top: the search for scale and offset of one column of weights, in
// every lane at once.
namespace mt {

template <int W, int Top>
MT_INLINE VF<W> nearest_code(VF<W> y) {
  return vround<W>(vmin<W>(vmax<W>(y, splat<W>(0.0f)), splat<W>(static_cast<float>(Top))));
}

template <int W>
struct AffineFit {
  VF<W> d, m, gain;  // gain: what the fit explains of the weighted variance
};

// What stays the same through a search: sum w and the weighted mean of x. Sums are taken of
// x - mean, where the normal equations are well conditioned.
template <int W>
struct AffineFacts {
  VF<W> weight, mean, low, high;
};

template <int W, int N>
MT_INLINE AffineFacts<W> affine_facts(const Columns<N>& c, int lane) {
  VF<W> sum_w = splat<W>(0.0f), sum_x = splat<W>(0.0f);
  VF<W> low = load<W>(&c.x[0][lane]), high = low;
  for (int i = 0; i < N; ++i) {
    const VF<W> x = load<W>(&c.x[i][lane]), w = load<W>(&c.w[i][lane]);
    sum_w += w;
    sum_x += w * x;
    low = vmin<W>(low, x);
    high = vmax<W>(high, x);
  }
  return {sum_w, sum_x / sum_w, low, high};
}

// Rounds at (d, m), solves the weighted normal equations for the two, keeps the better. Returns
// the refitted pair for the next round.
template <int W, int N, int Top>
MT_INLINE AffineFit<W> try_affine(const Columns<N>& c, int lane, const AffineFacts<W>& facts,
                                  VF<W> d, VF<W> m, AffineFit<W>& best) {
  const VF<W> inverse = inverse_or_zero<W>(d);
  VF<W> q1 = splat<W>(0.0f), q2 = q1, qx = q1;
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const VF<W> x = load<W>(&c.x[i][lane]), w = load<W>(&c.w[i][lane]);
    const VF<W> q = nearest_code<W, Top>((x - m) * inverse);
    const VF<W> wq = w * q;
    q1 += wq;
    q2 += wq * q;
    qx += wq * (x - facts.mean);
  }
  const VF<W> fitted = ratio_or_zero<W>(qx, q2 - q1 * q1 / facts.weight);
  const AffineFit<W> fit{fitted, facts.mean - fitted * q1 / facts.weight, fitted * qx};
  const VI<W> better = fit.gain > best.gain;
  best.gain = better ? fit.gain : best.gain;
  best.d = better ? fit.d : best.d;
  best.m = better ? fit.m : best.m;
  return fit;
}

// Ranges cut at either end by multiples of a share of a step, each refitted; then the best again.
template <int W, int N, int Top, class Cuts>
MT_INLINE AffineFit<W> search_affine(const Columns<N>& c, int lane, const AffineFacts<W>& facts) {
  AffineFit<W> best{splat<W>(0.0f), facts.mean, splat<W>(0.0f)};
  const VF<W> range = facts.high - facts.low;
  for (const float low_cut : Cuts::kCuts) {
    for (const float high_cut : Cuts::kCuts) {
      const VF<W> d = range * (1.0f / (static_cast<float>(Top) + low_cut + high_cut));
      try_affine<W, N, Top>(c, lane, facts, d, facts.low + low_cut * d, best);
    }
  }
  for (int round = 0; round < Cuts::kRounds; ++round) {
    const AffineFit<W> centre = best;
    for (const float stretch : Cuts::kStretches) {
      // About the mean, so that the offset moves with the scale.
      const VF<W> m = facts.mean - (facts.mean - centre.m) * stretch;
      try_affine<W, N, Top>(c, lane, facts, centre.d * stretch, m, best);
    }
    const VF<W> shift = centre.d * (0.3f / static_cast<float>(1 + round));
    try_affine<W, N, Top>(c, lane, facts, centre.d, centre.m + shift, best);
    try_affine<W, N, Top>(c, lane, facts, centre.d, centre.m - shift, best);
  }
  return best;
}

// sum w (x - d q - m)^2 under the given pair; *residual gets sum w (x - d q) / sum w, the offset
// that these codes would like best.
template <int W, int N, int Top>
MT_INLINE VF<W> affine_error(const Columns<N>& c, int lane, VF<W> weight, VF<W> d, VF<W> m,
                             VF<W>* residual) {
  const VF<W> inverse = inverse_or_zero<W>(d);
  VF<W> error = splat<W>(0.0f), sum = error;
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const VF<W> x = load<W>(&c.x[i][lane]), w = load<W>(&c.w[i][lane]);
    const VF<W> e = x - (nearest_code<W, Top>((x - m) * inverse) * d + m);
    const VF<W> we = w * e;
    error += we * e;
    sum += we;
  }
  *residual = m + sum / weight;
  return error;
}

// The best pair of f16 numbers near (d, m).
template <int W, int N, int Top>
MT_INLINE void settle_half_affine(const Columns<N>& c, int lane, VF<W> weight, VF<W>& d, VF<W>& m) {
  const VF<W> middle_d = round_to_half<W>(d), fitted_m = m;
  VF<W> best_d = middle_d, best_m = round_to_half<W>(m);
  VF<W> ignored;
  VF<W> best_error = affine_error<W, N, Top>(c, lane, weight, best_d, best_m, &ignored);
  for (int k = -1; k <= 1; ++k) {
    const VF<W> near_d =
        round_to_half<W>(middle_d + static_cast<float>(k) * half_step<W>(middle_d));
    VF<W> near_m = fitted_m;
    affine_error<W, N, Top>(c, lane, weight, near_d, fitted_m, &near_m);
    near_m = round_to_half<W>(near_m);
    for (int j = -1; j <= 1; ++j) {
      const VF<W> other_m = round_to_half<W>(near_m + static_cast<float>(j) * half_step<W>(near_m));
      const VF<W> error = affine_error<W, N, Top>(c, lane, weight, near_d, other_m, &ignored);
      const VI<W> better = error < best_error;
      best_error = better ? error : best_error;
      best_d = better ? near_d : best_d;
      best_m = better ? other_m : best_m;
    }
  }
  d = best_d;
  m = best_m;
}

}  // namespace mt
