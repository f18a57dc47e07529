#include "model/duplicate.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace mt {

double typical_rounding(Dtype dtype) {
  // A float with m mantissa bits rounds by a uniform error of at most half a step.
  if (dtype == Dtype::F32 || dtype == Dtype::F64) return 0;
  if (dtype == Dtype::F16) return std::exp2(-11) / std::sqrt(3.0);
  if (dtype == Dtype::BF16) return std::exp2(-8) / std::sqrt(3.0);
  return 1.6 * std::exp2(-info(dtype).bits_per_weight());
}

std::optional<double> head_is_embedding(const TensorFile& file) {
  const Tensor* head = file.find_tensor("output.weight");
  const Tensor* embedding = file.find_tensor("token_embd.weight");
  if (!head || !embedding || head->shape != embedding->shape || head->shape.size() != 2)
    return std::nullopt;
  if (!info(head->dtype).decodes || !info(embedding->dtype).decodes) return std::nullopt;
  int64_t n_rows = head->shape[0];
  int64_t n = head->shape[1];
  if (n_rows <= 0 || n <= 0) return std::nullopt;

  double expected = std::hypot(typical_rounding(head->dtype), typical_rounding(embedding->dtype));
  // Rounding varies with the weights' distribution and the quantiser; two matrices that merely
  // resemble each other differ by far more (unrelated ones by a factor of 1.4).
  double limit = 1.75 * expected + 1e-6;
  int64_t sampled = std::min<int64_t>(n_rows, 512);
  std::vector<float> a(static_cast<size_t>(n)), b(a);
  double difference = 0, size = 0;
  int64_t used = 0, far = 0;
  for (int64_t i = 0; i < sampled; ++i) {
    int64_t r = i * n_rows / sampled;
    decode_row(head->dtype, head->data.bytes.data() + r * row_bytes(head->dtype, n), a.data(), n);
    decode_row(embedding->dtype, embedding->data.bytes.data() + r * row_bytes(embedding->dtype, n),
               b.data(), n);
    double d2 = 0, s2 = 0;
    for (size_t j = 0; j < a.size(); ++j) {
      double d = double(a[j]) - double(b[j]);
      d2 += d * d;
      s2 += (double(a[j]) * a[j] + double(b[j]) * b[j]) / 2;
    }
    if (!std::isfinite(d2) || !std::isfinite(s2)) return std::nullopt;
    if (s2 == 0) continue;  // rows of unused tokens
    ++used;
    if (d2 > 4 * limit * limit * s2) ++far;
    difference += d2;
    size += s2;
  }
  if (used == 0) return std::nullopt;
  double relative = std::sqrt(difference / size);
  // A few odd rows are tokens added later or very uneven ones; more mean another matrix.
  if (relative > limit || far * 50 > used) return std::nullopt;
  return relative;
}

}  // namespace mt
