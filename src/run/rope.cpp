#include "run/rope.h"

#include <cmath>

namespace mt {

RopeTable::RopeTable(const Attention& a, std::span<const int64_t> positions)
    : n_pairs_(a.rope_dims / 2),
      base_(a.rope_base),
      scale_(a.rope_scale),
      factors_(a.rope_factors),
      values_(positions.size() * static_cast<size_t>(a.rope_dims)) {
  float* out = values_.data();
  std::vector<double> frequency(static_cast<size_t>(n_pairs_));
  for (int64_t i = 0; i < n_pairs_; ++i) {
    size_t s = static_cast<size_t>(i);
    frequency[s] = scale_ * std::pow(base_, -2.0 * double(i) / double(a.rope_dims));
    if (!factors_.empty()) frequency[s] /= double(factors_[s]);
  }
  for (int64_t p : positions)
    for (double f : frequency) {
      *out++ = static_cast<float>(std::cos(double(p) * f));
      *out++ = static_cast<float>(std::sin(double(p) * f));
    }
}

bool RopeTable::serves(const Attention& a) const {
  return a.rope_base == base_ && a.rope_scale == scale_ && a.rope_dims == 2 * n_pairs_ &&
         a.rope_factors == factors_;
}

}  // namespace mt
