#include "cut/feedback.h"

#include "base/checked.h"
#include "cut/feedback_rows.h"
#include "dtype/codes.h"
#include "dtype/lattice_codes.h"

namespace mt {

namespace {

// Of formats that have a code for each weight.
class CodedRows : public RowsFitter {
 public:
  CodedRows(const Runtime& rt, const Weight& source, Dtype dtype, const Curvature& curvature)
      : RowsFitter(rt, source, dtype, curvature), levels_(*levels_of(dtype)) {}

 private:
  void feed_block(int64_t r, int64_t b, float* t, std::byte* at) override {
    BlockCodes codes;
    read_codes(dtype_, at, codes);
    for (int64_t j = length_ - 1; j >= 0; --j) {
      const float scale = codes.scale[j / codes.sub], offset = codes.offset[j / codes.sub];
      if (scale != 0) codes.code[j] = levels_.nearest((t[j] - offset) / scale);
      const float e = values_.row(r)[b + j] - (offset + scale * levels_.value(codes.code[j]));
      error_.row(r)[b + j] = e;
      const float* unit = c_.unit.row(b + j) + b;
      for (int64_t i = 0; i < j; ++i) t[i] += e * unit[i];
    }
    write_codes(dtype_, codes.code, at);
  }

  int64_t codes_of_block(int64_t r, int64_t b, std::byte* at) override {
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

  const Levels levels_;
};

std::unique_ptr<RowsFitter> rows_fitter(const Runtime& rt, const Weight& source, Dtype dtype,
                                        const Curvature& curvature) {
  if (lattice_subs(dtype)) return lattice_rows(rt, source, dtype, curvature);
  return std::make_unique<CodedRows>(rt, source, dtype, curvature);
}

}  // namespace

Weight encode_with_feedback(const Runtime& rt, const Weight& source, Dtype dtype,
                            const Curvature& curvature, const RowWeights& weights,
                            FeedbackStats* stats) {
  if (!levels_of(dtype) && !lattice_subs(dtype)) return encode_weight(rt, source, dtype, weights);
  assert(curvature.h.rows() == source.cols);
  const int64_t bytes = row_bytes(dtype, source.cols);
  auto buffer =
      std::make_shared<AlignedBuffer<std::byte>>(static_cast<size_t>(bytes * source.rows));
  const int64_t tasks = ceil_div(source.rows, RowsFitter::kRows);
  std::vector<FeedbackStats> parts(static_cast<size_t>(tasks));
  rt.pool.parallel_for(tasks, [&](int64_t task, int) {
    const auto fitter = rows_fitter(rt, source, dtype, curvature);
    const int64_t first = task * RowsFitter::kRows,
                  count = std::min(RowsFitter::kRows, source.rows - first);
    parts[static_cast<size_t>(task)] =
        fitter->fit(first, count, weights, buffer->data() + first * bytes);
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
