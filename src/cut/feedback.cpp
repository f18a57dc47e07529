#include "cut/feedback.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/checked.h"
#include "base/error.h"
#include "dtype/codes.h"
#include "dtype/scale_fields.h"
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
  const int64_t n = moment.n();
  Curvature c{MatrixBuffer(n, n), MatrixBuffer(n, n), std::vector<float>(static_cast<size_t>(n))};
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) trace += moment.at(i, i);
  // Relative to the mean of the diagonal; where nothing ever arrived all channels count alike.
  const double unit = trace > 0 ? double(n) / trace : 1;
  const double keep =
      double(moment.n_tokens()) / double(std::max<int64_t>(1, n + moment.n_tokens()));
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

namespace {

constexpr int64_t kRows = 32;  // a task
constexpr int kRounds = 3;     // of coordinate descent, each over all codes and scales

// Rows of one task.
class RowsFitter {
 public:
  RowsFitter(const Runtime& rt, const Weight& source, Dtype dtype, const Curvature& curvature)
      : rt_(rt),
        source_(source),
        dtype_(dtype),
        format_(info(dtype)),
        levels_(*levels_of(dtype)),
        offsets_(scale_offsets(dtype)),
        c_(curvature),
        n_(source.cols),
        length_(format_.block_length),
        row_bytes_(mt::row_bytes(dtype, n_)),
        values_(kRows, n_),
        error_(kRows, n_),
        slope_(kRows, n_),
        weights_(static_cast<size_t>(n_)),
        plain_(static_cast<size_t>(kRows * row_bytes_)),
        fed_(static_cast<size_t>(kRows * row_bytes_)) {}

  // first + count rows into dst, one after another.
  FeedbackStats fit(int64_t first, int64_t count, const RowWeights& weights, std::byte* dst) {
    count_ = count;
    for (int64_t r = 0; r < count; ++r) {
      rt_.kernels.decode_row(source_.dtype, source_.row(first + r), values_.row(r), n_);
      // One infinite error would drag all the row's codes along: 0, as the plain encoders take it.
      for (int64_t i = 0; i < n_; ++i)
        if (!std::isfinite(values_.row(r)[i])) values_.row(r)[i] = 0;
    }
    FeedbackStats stats;
    feed_back();
    for (int64_t r = 0; r < count; ++r) {
      weights(first + r, weights_);
      normalise();
      encode_row(dtype_, values_.row(r), weights_.data(), row(plain_, r), n_);
    }
    const std::vector<double> fed_forms = forms(fed_);
    const std::vector<double> forms_of_plain = forms(plain_);  // leaves its errors and slopes
    // Errors and slopes of the rows where feedback is better replace those of the plain search.
    bool any = false;
    for (int64_t r = 0; r < count; ++r)
      if (fed_forms[static_cast<size_t>(r)] < forms_of_plain[static_cast<size_t>(r)]) {
        std::memcpy(row(plain_, r), row(fed_, r), static_cast<size_t>(row_bytes_));
        ++stats.rows_fed;
        any = true;
      }
    if (any) forms(plain_);
    for (int64_t r = 0; r < count; ++r) {
      stats.plain += forms_of_plain[static_cast<size_t>(r)];
      descend(r);
      double form = 0;
      for (int64_t i = 0; i < n_; ++i) form += double(error_.row(r)[i]) * double(slope_.row(r)[i]);
      stats.best += form;
      std::memcpy(dst + r * row_bytes_, row(plain_, r), static_cast<size_t>(row_bytes_));
    }
    return stats;
  }

 private:
  std::byte* row(std::vector<std::byte>& of, int64_t r) { return of.data() + r * row_bytes_; }

  void normalise() {
    double sum = 0;
    for (float w : weights_) sum += double(w);
    const auto scale = static_cast<float>(sum > 0 ? double(n_) / sum : 0);
    for (float& w : weights_) w = sum > 0 ? w * scale : 1.0f;
  }

  // Fills fed_: block after block from the last one. The target of column j is
  // w_j + sum over k > j of e_k unit_kj; its error there counts d_j.
  void feed_back() {
    const int64_t block = length_;
    MatrixBuffer target(kRows, block);
    std::vector<float> importance(static_cast<size_t>(kRows * block));
    std::vector<std::byte> bytes(static_cast<size_t>(kRows * format_.block_bytes));
    BlockCodes codes;
    for (int64_t b = n_ - block; b >= 0; b -= block) {
      const int64_t end = b + block;
      for (int64_t j = b; j < end; j += kPanel)
        rt_.kernels.gemm_panel(count_, std::min(kPanel, end - j), n_ - end, error_.row(0) + end, n_,
                               c_.unit.row(std::min(end, n_ - 1)) + j, n_, target.row(0) + (j - b),
                               block, false);
      for (int64_t r = 0; r < count_; ++r) {
        for (int64_t j = 0; j < block; ++j) target.row(r)[j] += values_.row(r)[b + j];
        std::copy_n(c_.d.data() + b, block, importance.data() + r * block);
      }
      encode_row(dtype_, target.data(), importance.data(), bytes.data(), count_ * block);
      for (int64_t r = 0; r < count_; ++r) {
        std::byte* at = bytes.data() + r * format_.block_bytes;
        read_codes(dtype_, at, codes);
        float* t = target.row(r);
        for (int64_t j = block - 1; j >= 0; --j) {
          const float scale = codes.scale[j / codes.sub], offset = codes.offset[j / codes.sub];
          if (scale != 0) codes.code[j] = levels_.nearest((t[j] - offset) / scale);
          const float e = values_.row(r)[b + j] - (offset + scale * levels_.value(codes.code[j]));
          error_.row(r)[b + j] = e;
          const float* unit = c_.unit.row(b + j) + b;
          for (int64_t i = 0; i < j; ++i) t[i] += e * unit[i];
        }
        write_codes(dtype_, codes.code, at);
        std::memcpy(row(fed_, r) + b / block * format_.block_bytes, at,
                    static_cast<size_t>(format_.block_bytes));
      }
    }
  }

  // e h e^T of every row; leaves e in error_ and e h in slope_.
  std::vector<double> forms(std::vector<std::byte>& encoded) {
    for (int64_t r = 0; r < count_; ++r) {
      rt_.kernels.decode_row(dtype_, row(encoded, r), error_.row(r), n_);
      for (int64_t i = 0; i < n_; ++i) error_.row(r)[i] = values_.row(r)[i] - error_.row(r)[i];
    }
    for (int64_t j = 0; j < n_; j += kPanel)
      rt_.kernels.gemm_panel(count_, std::min(kPanel, n_ - j), n_, error_.data(), n_,
                             c_.h.data() + j, n_, slope_.data() + j, n_, false);
    std::vector<double> out;
    for (int64_t r = 0; r < count_; ++r) {
      double form = 0;
      for (int64_t i = 0; i < n_; ++i) form += double(error_.row(r)[i]) * double(slope_.row(r)[i]);
      out.push_back(form);
    }
    return out;
  }

  // Value i of row r grows by `step`.
  void move(int64_t r, int64_t i, float step) {
    error_.row(r)[i] -= step;
    rt_.kernels.axpy(-step, c_.h.row(i), slope_.row(r), n_);
  }

  void descend(int64_t r) {
    for (int round = 0; round < kRounds; ++round) {
      int64_t changes = 0;
      for (int64_t b = 0; b < n_; b += length_) {
        std::byte* at = row(plain_, r) + b / length_ * format_.block_bytes;
        changes += codes_of_block(r, b, at);
        for (size_t field = 0; field < offsets_.size(); ++field) field_of_block(r, b, at, field);
      }
      if (changes * 200 < n_) break;
    }
  }

  int64_t codes_of_block(int64_t r, int64_t b, std::byte* at) {
    BlockCodes codes;
    read_codes(dtype_, at, codes);
    int64_t changes = 0;
    for (int64_t j = 0; j < length_; ++j) {
      const float scale = codes.scale[j / codes.sub];
      if (scale == 0) continue;
      const float level = levels_.value(codes.code[j]);
      const float wanted = level + slope_.row(r)[b + j] / (c_.h.row(b + j)[b + j] * scale);
      const uint8_t code = levels_.nearest(wanted);
      // By value: two codes may stand for one level.
      const float step = scale * (levels_.value(code) - level);
      if (step == 0) continue;
      codes.code[j] = code;
      move(r, b + j, step);
      ++changes;
    }
    if (changes) write_codes(dtype_, codes.code, at);
    return changes;
  }

  // The best value of one f16 field of a block, all else as it is.
  void field_of_block(int64_t r, int64_t b, std::byte* at, size_t field) {
    std::byte copy[256];
    float basis[256], before[256], after[256];
    const auto bytes = static_cast<size_t>(format_.block_bytes);
    std::memcpy(copy, at, bytes);
    isolate_field(dtype_, field, {copy, bytes});
    decode_row(dtype_, copy, basis, length_);
    double along = 0, curve = 0;
    for (int64_t j = 0; j < length_; ++j) {
      along += double(basis[j]) * double(slope_.row(r)[b + j]);
      if (basis[j] == 0) continue;
      double sum = 0;
      const float* h = c_.h.row(b + j) + b;
      for (int64_t k = 0; k < length_; ++k) sum += double(h[k]) * double(basis[k]);
      curve += double(basis[j]) * sum;
    }
    if (!(curve > 0)) return;
    uint16_t half;
    std::memcpy(&half, at + offsets_[field], sizeof half);
    const float now = half_to_float(half);
    const uint16_t best = float_to_half(static_cast<float>(double(now) + along / curve));
    const float then = half_to_float(best);
    const double step = double(then) - double(now);
    if (best == half || !std::isfinite(then) || step * step * curve >= 2 * step * along) return;
    decode_row(dtype_, at, before, length_);
    std::memcpy(at + offsets_[field], &best, sizeof best);
    decode_row(dtype_, at, after, length_);
    for (int64_t j = 0; j < length_; ++j)
      if (after[j] != before[j]) move(r, b + j, after[j] - before[j]);
  }

  const Runtime& rt_;
  const Weight& source_;
  const Dtype dtype_;
  const DtypeInfo& format_;
  const Levels levels_;
  const std::span<const int> offsets_;
  const Curvature& c_;
  const int64_t n_, length_, row_bytes_;
  int64_t count_ = 0;
  MatrixBuffer values_, error_, slope_;  // [row, column]; slope: error h
  std::vector<float> weights_;
  std::vector<std::byte> plain_, fed_;  // encoded rows; in the end plain_ holds the best
};

}  // namespace

Weight encode_with_feedback(const Runtime& rt, const Weight& source, Dtype dtype,
                            const Curvature& curvature, const RowWeights& weights,
                            FeedbackStats* stats) {
  if (!levels_of(dtype)) return encode_weight(rt, source, dtype, weights);
  assert(curvature.h.rows() == source.cols);
  const int64_t bytes = row_bytes(dtype, source.cols);
  auto buffer =
      std::make_shared<AlignedBuffer<std::byte>>(static_cast<size_t>(bytes * source.rows));
  const int64_t tasks = ceil_div(source.rows, kRows);
  std::vector<FeedbackStats> parts(static_cast<size_t>(tasks));
  rt.pool.parallel_for(tasks, [&](int64_t task, int) {
    RowsFitter fitter(rt, source, dtype, curvature);
    const int64_t first = task * kRows, count = std::min(kRows, source.rows - first);
    parts[static_cast<size_t>(task)] =
        fitter.fit(first, count, weights, buffer->data() + first * bytes);
  });
  if (stats)
    for (const FeedbackStats& p : parts) {
      stats->plain += p.plain;
      stats->best += p.best;
      stats->rows_fed += p.rows_fed;
    }
  return {.rows = source.rows,
          .cols = source.cols,
          .dtype = dtype,
          .data = {buffer, std::span<const std::byte>(buffer->data(), buffer->size())}};
}

}  // namespace mt
