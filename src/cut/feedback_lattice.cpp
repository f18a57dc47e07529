// Error feedback for formats of code words: IQ2 and IQ3. What CodedRows does weight by weight is
// done for the eight weights of a cell, under the quadratic form that they have together.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cut/feedback_rows.h"
#include "dtype/lattice_codes.h"

namespace mt {

namespace {

class LatticeRows : public RowsFitter {
 public:
  using RowsFitter::RowsFitter;

 private:
  static constexpr int64_t kCell = 8;
  float scale_of(const LatticeCodes& codes, float unit, int64_t weight) const {
    const auto sub = static_cast<size_t>(weight * lattice_subs(dtype_) / length_);
    return unit * static_cast<float>(2 * codes.scale[sub] + 1);
  }

  // With l the unit triangle of the cell, d its pivots and x the errors behind it as they reach it,
  // the form is that of s = l diag(d) l^T around w + x l^-1.
  void feed_block(int64_t r, int64_t b, float* target, std::byte* at) override {
    LatticeCodes codes;
    read_lattice(dtype_, at, codes);
    const float unit = lattice_unit(dtype_, at);
    for (int64_t c = length_ / kCell - 1; c >= 0; --c) {
      const int64_t first = b + c * kCell;
      const float *w = values_.row(r) + first, *d = c_.d.data() + first;
      float* t = target + c * kCell;
      auto l = [&](int64_t i, int64_t j) { return c_.unit.row(first + i)[first + j]; };
      const float scale = scale_of(codes, unit, c * kCell);
      float levels[kCell] = {};
      if (scale != 0) {
        CellForm form;
        float reach[kCell];  // x
        for (int64_t i = 0; i < kCell; ++i) reach[i] = t[i] - w[i];
        for (int64_t i = 0; i < kCell; ++i)
          for (int64_t j = 0; j <= i; ++j) {
            float sum = 0;
            for (int64_t k = 0; k <= j; ++k) sum += l(i, k) * d[k] * l(j, k);
            form.a[i][j] = form.a[j][i] = sum;
          }
        for (int64_t i = 0; i < kCell; ++i) {
          float sum = 0;
          for (int64_t j = 0; j < kCell; ++j) sum += form.a[i][j] * w[j];
          for (int64_t j = 0; j <= i; ++j) sum += l(i, j) * d[j] * reach[j];
          form.b[i] = sum / scale;
        }
        for (int64_t j = kCell - 1; j >= 0; --j) {
          for (int64_t k = j + 1; k < kCell; ++k) reach[j] -= reach[k] * l(k, j);
          form.free[j] = (w[j] + reach[j]) / scale;
        }
        cell_levels(dtype_, codes, static_cast<int>(c), levels);
        lower_cell(dtype_, form, codes, static_cast<int>(c), levels);
      }
      for (int64_t k = kCell - 1; k >= 0; --k) {
        const float e = w[k] - scale * levels[k];
        error_.row(r)[first + k] = e;
        const float* row = c_.unit.row(first + k) + b;
        for (int64_t i = 0; i < c * kCell; ++i) target[i] += e * row[i];
      }
    }
    write_lattice(dtype_, codes, at);
  }

  int64_t codes_of_block(int64_t r, int64_t b, std::byte* at) override {
    LatticeCodes codes;
    read_lattice(dtype_, at, codes);
    const float unit = lattice_unit(dtype_, at);
    if (unit == 0) return 0;
    int64_t changes = 0;
    bool scaled = false;
    for (int64_t c = 0; c < length_ / kCell; ++c) {
      const int64_t first = b + c * kCell;
      const float scale = scale_of(codes, unit, c * kCell);
      float levels[kCell], old[kCell];
      cell_levels(dtype_, codes, static_cast<int>(c), levels);
      std::copy_n(levels, kCell, old);
      CellForm form;
      const float* slope = slope_.row(r) + first;
      for (int64_t i = 0; i < kCell; ++i) {
        const float* h = c_.h.row(first + i) + first;
        float sum = slope[i] / scale;
        for (int64_t j = 0; j < kCell; ++j) {
          form.a[i][j] = h[j];
          sum += h[j] * levels[j];
        }
        form.b[i] = sum;
        form.free[i] = levels[i] + slope[i] / (h[i] * scale);
      }
      if (!lower_cell(dtype_, form, codes, static_cast<int>(c), levels)) continue;
      for (int64_t i = 0; i < kCell; ++i)
        if (levels[i] != old[i]) {
          move(r, first + i, scale * (levels[i] - old[i]));
          ++changes;
        }
    }
    for (int sub = 0; sub < lattice_subs(dtype_); ++sub)
      scaled |= scale_of_sub(r, b, unit, codes, sub);
    if (changes || scaled) write_lattice(dtype_, codes, at);
    return changes;
  }

  // The best of a sub-block's scales, all else as it is.
  bool scale_of_sub(int64_t r, int64_t b, float unit, LatticeCodes& codes, int sub) {
    const int64_t length = length_ / lattice_subs(dtype_), first = sub * length;
    float levels[32];
    for (int64_t c = 0; c < length / kCell; ++c)
      cell_levels(dtype_, codes, static_cast<int>(first / kCell + c), levels + c * kCell);
    double along = 0, curve = 0;
    for (int64_t i = 0; i < length; ++i) {
      const float* h = c_.h.row(b + first + i) + b + first;
      double sum = 0;
      for (int64_t j = 0; j < length; ++j) sum += double(h[j]) * double(levels[j]);
      curve += sum * double(levels[i]);
      along += double(levels[i]) * double(slope_.row(r)[b + first + i]);
    }
    if (!(curve > 0)) return false;
    const double wish = double(codes.scale[sub]) + 0.5 * along / (curve * double(unit));
    const int best = static_cast<int>(std::clamp(std::nearbyint(wish), 0.0, 15.0));
    const double step = 2 * double(unit) * (best - codes.scale[sub]);
    if (step == 0 || step * step * curve >= 2 * step * along) return false;
    for (int64_t i = 0; i < length; ++i)
      move(r, b + first + i, static_cast<float>(step) * levels[i]);
    codes.scale[sub] = best;
    return true;
  }
};

}  // namespace

std::unique_ptr<RowsFitter> lattice_rows(const Runtime& rt, const Weight& source, Dtype dtype,
                                         const Curvature& curvature) {
  return std::make_unique<LatticeRows>(rt, source, dtype, curvature);
}

}  // namespace mt
