#include "cut/feedback_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "dtype/half.h"
#include "dtype/scale_fields.h"
#include "run/linear.h"

namespace mt {

namespace {
constexpr int kRounds = 3;       // of coordinate descent, each over all codes and scales
constexpr int64_t kGroup = 256;  // columns whose changes reach the others together
constexpr int64_t kWide = 256;   // columns and rows of a moment matrix that are packed at a time
}  // namespace

RowsFitter::RowsFitter(const Runtime& rt, const Weight& source, Dtype dtype,
                       const Curvature& curvature)
    : rt_(rt),
      source_(source),
      dtype_(dtype),
      format_(info(dtype)),
      offsets_(scale_offsets(dtype)),
      c_(curvature),
      n_(source.cols),
      length_(format_.block_length),
      row_bytes_(mt::row_bytes(dtype, n_)),
      values_(kRows, n_),
      error_(kRows, n_),
      slope_(kRows, n_),
      packed_(static_cast<size_t>(kWide * kWide)),
      steps_(kRows, kGroup),
      weights_(static_cast<size_t>(n_)),
      plain_(static_cast<size_t>(kRows * row_bytes_)),
      fed_(static_cast<size_t>(kRows * row_bytes_)) {}

FeedbackStats RowsFitter::fit(int64_t first, int64_t count, const RowWeights& weights,
                              std::byte* dst) {
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
  descend();
  for (int64_t r = 0; r < count; ++r) {
    stats.plain += forms_of_plain[static_cast<size_t>(r)];
    double form = 0;
    for (int64_t i = 0; i < n_; ++i) form += double(error_.row(r)[i]) * double(slope_.row(r)[i]);
    stats.best += form;
    std::memcpy(dst + r * row_bytes_, row(plain_, r), static_cast<size_t>(row_bytes_));
  }
  return stats;
}

void RowsFitter::normalise() {
  double sum = 0;
  for (float w : weights_) sum += double(w);
  const auto scale = static_cast<float>(sum > 0 ? double(n_) / sum : 0);
  for (float& w : weights_) w = sum > 0 ? w * scale : 1.0f;
}

// Fills fed_: block after block from the last one. The target of column j is
// w_j + sum over k > j of e_k unit_kj; its error there counts d_j.
void RowsFitter::feed_back() {
  const int64_t block = length_;
  MatrixBuffer target(kRows, block);
  std::vector<float> importance(static_cast<size_t>(kRows * block));
  std::vector<std::byte> bytes(static_cast<size_t>(kRows * format_.block_bytes));
  for (int64_t b = n_ - block; b >= 0; b -= block) {
    const int64_t end = b + block;
    std::fill_n(target.data(), count_ * block, 0.0f);
    add_product(error_.data() + end, n_, c_.unit.view().slice_rows(end, n_).slice_cols(b, end),
                target.data(), block);
    for (int64_t r = 0; r < count_; ++r) {
      for (int64_t j = 0; j < block; ++j) target.row(r)[j] += values_.row(r)[b + j];
      std::copy_n(c_.d.data() + b, block, importance.data() + r * block);
    }
    encode_row(dtype_, target.data(), importance.data(), bytes.data(), count_ * block);
    for (int64_t r = 0; r < count_; ++r) {
      std::byte* at = bytes.data() + r * format_.block_bytes;
      feed_block(r, b, target.row(r), at);
      std::memcpy(row(fed_, r) + b / block * format_.block_bytes, at,
                  static_cast<size_t>(format_.block_bytes));
    }
  }
}

// e h e^T of every row; leaves e in error_ and e h in slope_.
std::vector<double> RowsFitter::forms(std::vector<std::byte>& encoded) {
  for (int64_t r = 0; r < count_; ++r) {
    rt_.kernels.decode_row(dtype_, row(encoded, r), error_.row(r), n_);
    for (int64_t i = 0; i < n_; ++i) error_.row(r)[i] = values_.row(r)[i] - error_.row(r)[i];
  }
  std::fill_n(slope_.data(), count_ * n_, 0.0f);
  add_product(error_.data(), n_, c_.h, slope_.data(), n_);
  std::vector<double> out;
  for (int64_t r = 0; r < count_; ++r) {
    double form = 0;
    for (int64_t i = 0; i < n_; ++i) form += double(error_.row(r)[i]) * double(slope_.row(r)[i]);
    out.push_back(form);
  }
  return out;
}

// c[i,j] += sum_p a[i,p] m[p,j] for the task's rows i. Rows of m are far apart in memory: blocks of
// it are packed first.
void RowsFitter::add_product(const float* a, int64_t lda, ConstMatrix m, float* c, int64_t ldc) {
  for (int64_t p = 0; p < m.rows; p += kWide)
    for (int64_t j = 0; j < m.cols; j += kWide) {
      const int64_t depth = std::min(kWide, m.rows - p), width = std::min(kWide, m.cols - j);
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t q = 0; q < width; q += kPanel)
          std::copy_n(m.row(p + k) + j + q, std::min(kPanel, width - q),
                      packed_.data() + q * kWide + k * kPanel);
      for (int64_t q = 0; q < width; q += kPanel)
        rt_.kernels.gemm_panel(count_, std::min(kPanel, width - q), depth, a + p, lda,
                               packed_.data() + q * kWide, kPanel, c + j + q, ldc, true);
    }
}

void RowsFitter::move(int64_t r, int64_t i, float step) {
  error_.row(r)[i] -= step;
  steps_.row(r)[i - group_] -= step;
  rt_.kernels.axpy(-step, c_.h.row(i) + group_, slope_.row(r) + group_, group_end_ - group_);
}

// All rows side by side, so that what is far from a group of columns learns of its changes by one
// product that reads H once.
void RowsFitter::descend() {
  std::vector<int64_t> changes(static_cast<size_t>(count_), n_);
  for (int round = 0; round < kRounds; ++round) {
    std::vector<int64_t> rows;
    for (int64_t r = 0; r < count_; ++r)
      if (changes[static_cast<size_t>(r)] * 200 >= n_) rows.push_back(r);
    if (rows.empty()) return;
    for (int64_t r : rows) changes[static_cast<size_t>(r)] = 0;
    for (group_ = 0; group_ < n_; group_ = group_end_) {
      group_end_ = std::min(group_ + kGroup, n_);
      std::fill_n(steps_.data(), count_ * kGroup, 0.0f);
      for (int64_t r : rows)
        for (int64_t b = group_; b < group_end_; b += length_) {
          std::byte* at = row(plain_, r) + b / length_ * format_.block_bytes;
          changes[static_cast<size_t>(r)] += codes_of_block(r, b, at);
          for (size_t field = 0; field < offsets_.size(); ++field) field_of_block(r, b, at, field);
        }
      const ConstMatrix h = c_.h.view().slice_rows(group_, group_end_);
      add_product(steps_.data(), kGroup, h.slice_cols(0, group_), slope_.data(), n_);
      add_product(steps_.data(), kGroup, h.slice_cols(group_end_, n_), slope_.data() + group_end_,
                  n_);
    }
  }
}

// The best value of one f16 field of a block, all else as it is.
void RowsFitter::field_of_block(int64_t r, int64_t b, std::byte* at, size_t field) {
  std::byte copy[256];
  float basis[256], before[256], after[256];
  const auto bytes = static_cast<size_t>(format_.block_bytes);
  std::memcpy(copy, at, bytes);
  isolate_field(dtype_, field, {copy, bytes});
  decode_row(dtype_, copy, basis, length_);
  double along = 0, curve = 0;
  for (int64_t j = 0; j < length_; ++j) {
    along += double(basis[j]) * double(slope_.row(r)[b + j]);
    if (basis[j] != 0)
      curve += double(basis[j]) * double(rt_.kernels.dot(c_.h.row(b + j) + b, basis, length_));
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

}  // namespace mt
