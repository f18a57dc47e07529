#include "cut/curvature.h"

#include <algorithm>
#include <cmath>

#include "base/checked.h"
#include "base/error.h"
#include "run/linear.h"

namespace mt {

SecondMoment::SecondMoment(int64_t n) : n_(n), sums_(static_cast<size_t>(n * n)) {
  std::fill_n(sums_.data(), sums_.size(), 0.0);
}

void SecondMoment::add(const Runtime& rt, ConstMatrix x) {
  assert(x.cols == n_);
  n_tokens_ += x.rows;
  MatrixBuffer transposed(n_, x.rows);
  rt.pool.parallel_for(ceil_div(n_, kPanel), [&](int64_t panel, int) {
    for (int64_t i = panel * kPanel; i < std::min((panel + 1) * kPanel, n_); ++i)
      for (int64_t t = 0; t < x.rows; ++t) transposed.row(i)[t] = x.row(t)[i];
  });
  rt.pool.parallel_for(ceil_div(n_, kPanel), [&](int64_t panel, int) {
    const int64_t j = panel * kPanel, width = std::min(kPanel, n_ - j);
    AlignedBuffer<float> packed(static_cast<size_t>(x.rows * kPanel));
    for (int64_t t = 0; t < x.rows; ++t) {
      std::copy_n(x.row(t) + j, width, packed.data() + t * kPanel);
      std::fill_n(packed.data() + t * kPanel + width, kPanel - width, 0.0f);
    }
    alignas(64) float part[kChunk * kPanel];
    for (int64_t i = j; i < n_; i += kChunk) {
      const int64_t rows = std::min(kChunk, n_ - i);
      rt.kernels.gemm_panel(rows, width, x.rows, transposed.row(i), x.rows, packed.data(), kPanel,
                            part, kPanel, false);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; ++c)
          sums_[static_cast<size_t>((i + r) * n_ + j + c)] += double(part[r * kPanel + c]);
    }
  });
}

namespace {

// In place: the lower triangle of a becomes its Cholesky factor; `map` is named in errors. Columns
// in blocks; what is right of a block is updated by the kernel of the exact path.
void cholesky(const Runtime& rt, Matrix a, const std::string& map) {
  constexpr int64_t kBlock = 64;
  const int64_t n = a.rows;
  for (int64_t b = 0; b < n; b += kBlock) {
    const int64_t end = std::min(b + kBlock, n);
    for (int64_t j = b; j < end; ++j) {
      double pivot = double(a.row(j)[j]);
      for (int64_t k = b; k < j; ++k) pivot -= double(a.row(j)[k]) * double(a.row(j)[k]);
      if (!(pivot > 0))
        throw_error(
            "{}: the inputs' second moments, column {}: expected a positive pivot, found {}", map,
            j, pivot);
      const auto root = static_cast<float>(std::sqrt(pivot));
      a.row(j)[j] = root;
      for (int64_t i = j + 1; i < end; ++i) {
        double sum = double(a.row(i)[j]);
        for (int64_t k = b; k < j; ++k) sum -= double(a.row(i)[k]) * double(a.row(j)[k]);
        a.row(i)[j] = static_cast<float>(sum) / root;
      }
    }
    rt.pool.parallel_for(ceil_div(n - end, int64_t{16}), [&](int64_t piece, int) {
      for (int64_t i = end + 16 * piece; i < std::min(end + 16 * (piece + 1), n); ++i) {
        float* row = a.row(i);
        for (int64_t j = b; j < end; ++j) {
          double sum = double(row[j]);
          for (int64_t k = b; k < j; ++k) sum -= double(row[k]) * double(a.row(j)[k]);
          row[j] = static_cast<float>(sum / double(a.row(j)[j]));
        }
      }
    });
    rt.pool.parallel_for(ceil_div(n - end, kPanel), [&](int64_t panel, int) {
      const int64_t j = end + panel * kPanel, width = std::min(kPanel, n - j);
      alignas(64) float packed[kBlock * kPanel];
      for (int64_t k = 0; k < end - b; ++k)
        for (int64_t c = 0; c < kPanel; ++c)
          packed[k * kPanel + c] = c < width ? -a.row(j + c)[b + k] : 0.0f;
      rt.kernels.gemm_panel(n - j, width, end - b, a.row(j) + b, a.stride, packed, kPanel,
                            a.row(j) + j, a.stride, true);
    });
  }
}

}  // namespace

Curvature Curvature::of(const Runtime& rt, const SecondMoment& moment, const std::string& map) {
  constexpr double kDamp = 0.01;
  // Of what channels have in common on this text, the share that is taken to hold on others.
  constexpr double kShared = 0.5;
  const int64_t n = moment.n();
  Curvature c{MatrixBuffer(n, n), MatrixBuffer(n, n), std::vector<float>(static_cast<size_t>(n))};
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) trace += moment.at(i, i);
  // Relative to the mean of the diagonal; where nothing ever arrived all channels count alike.
  const double unit = trace > 0 ? double(n) / trace : 1;
  const double keep =
      kShared * double(moment.n_tokens()) / double(std::max<int64_t>(1, n + moment.n_tokens()));
  rt.pool.parallel_for(n, [&](int64_t i, int) {
    for (int64_t j = 0; j < n; ++j)
      c.h.row(i)[j] = static_cast<float>(moment.at(i, j) * unit * keep);
    c.h.row(i)[i] = static_cast<float>(moment.at(i, i) * unit + (trace > 0 ? kDamp : 1.0));
    std::copy_n(c.h.row(i), n, c.unit.row(i));
  });
  cholesky(rt, c.unit, map);
  for (int64_t i = 0; i < n; ++i) c.d[static_cast<size_t>(i)] = c.unit.row(i)[i];
  rt.pool.parallel_for(n, [&](int64_t i, int) {
    for (int64_t j = 0; j <= i; ++j) c.unit.row(i)[j] /= c.d[static_cast<size_t>(j)];
    std::fill(c.unit.row(i) + i + 1, c.unit.row(i) + n, 0.0f);
  });
  for (float& d : c.d) d *= d;
  return c;
}

}  // namespace mt
