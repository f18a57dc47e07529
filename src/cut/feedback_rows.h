#pragma once
#include <memory>
#include <span>
#include <vector>

#include "cut/feedback.h"

namespace mt {

// Rows that one task of error feedback rounds. Subclasses know what codes of a format are.
class RowsFitter {
 public:
  static constexpr int64_t kRows = 32;  // at most

  RowsFitter(const Runtime& rt, const Weight& source, Dtype dtype, const Curvature& curvature);
  virtual ~RowsFitter() = default;
  // first + count rows into dst, one after another.
  FeedbackStats fit(int64_t first, int64_t count, const RowWeights& weights, std::byte* dst);

 protected:
  // Gives block b of row r the codes that suit `target`, whose scales `at` has already, each weight
  // taking up the errors of those behind it: what a weight errs by goes into error_, and what that
  // asks of those before it into target.
  virtual void feed_block(int64_t r, int64_t b, float* target, std::byte* at) = 0;
  // One round of coordinate descent over the block's codes, and over what scales are stored as
  // whole numbers; returns how many weights changed.
  virtual int64_t codes_of_block(int64_t r, int64_t b, std::byte* at) = 0;
  // Value i of row r grows by `step`.
  void move(int64_t r, int64_t i, float step);

  const Runtime& rt_;
  const Weight& source_;
  const Dtype dtype_;
  const DtypeInfo& format_;
  const std::span<const int> offsets_;
  const Curvature& c_;
  const int64_t n_, length_, row_bytes_;
  int64_t count_ = 0;
  // [row, column]; slope: error h. While a group of columns is gone through, the slopes of the
  // others do not know of its changes yet.
  MatrixBuffer values_, error_, slope_;

 private:
  std::byte* row(std::vector<std::byte>& of, int64_t r) { return of.data() + r * row_bytes_; }
  void normalise();
  void feed_back();
  std::vector<double> forms(std::vector<std::byte>& encoded);
  void descend();
  void add_product(const float* a, int64_t lda, ConstMatrix m, float* c, int64_t ldc);
  void field_of_block(int64_t r, int64_t b, std::byte* at, size_t field);

  AlignedBuffer<float> packed_;
  int64_t group_ = 0, group_end_ = 0;  // the columns being gone through
  MatrixBuffer steps_;                 // [row, column of the group]: minus what they moved
  std::vector<float> weights_;
  std::vector<std::byte> plain_, fed_;  // encoded rows; in the end plain_ holds the best
};

// For formats with words of magnitudes (dtype/lattice_codes.h).
std::unique_ptr<RowsFitter> lattice_rows(const Runtime& rt, const Weight& source, Dtype dtype,
                                         const Curvature& curvature);

}  // namespace mt
