#pragma once
#include <string>
#include <vector>

#include "base/matrix.h"
#include "run/forward.h"

namespace mt {

// Sum of x x^T over calibration tokens, [n, n].
class SecondMoment {
 public:
  explicit SecondMoment(int64_t n);
  // x: [n_tokens, n]. Products of a call are summed in f32, calls in f64.
  void add(const Runtime& rt, ConstMatrix x);
  int64_t n() const { return n_; }
  int64_t n_tokens() const { return n_tokens_; }
  double at(int64_t i, int64_t j) const {
    return i >= j ? sums_[static_cast<size_t>(i * n_ + j)] : sums_[static_cast<size_t>(j * n_ + i)];
  }

 private:
  int64_t n_, n_tokens_ = 0;
  AlignedBuffer<double> sums_;  // the lower triangle
};

// The curvature of the error of one linear map's rows: half of d2 error / dw^2 up to a factor.
// Off the diagonal the estimate from few tokens is mostly noise, and half of what is left holds for
// this text alone: it is shrunk by n_tokens / (n + n_tokens) / 2. A hundredth of the mean of the
// diagonal is added to the diagonal.
struct Curvature {
  MatrixBuffer h;        // [n, n]
  MatrixBuffer unit;     // h = unit diag(d) unit^T, unit lower triangular with ones
  std::vector<float> d;  // [n]
  // Throws Error that names `map` where the moments are not finite.
  static Curvature of(const Runtime& rt, const SecondMoment& moment, const std::string& map);
};

}  // namespace mt
