#include "run/layers.h"

#include <cmath>

#include "base/error.h"

namespace mt {
namespace {
float inverse_rms(const Kernels& k, const float* x, int64_t n, float epsilon) {
  return 1.0f / std::sqrt(k.dot(x, x, n) / static_cast<float>(n) + epsilon);
}
}  // namespace

void embed(const Runtime& rt, const Model& model, std::span<const int32_t> tokens, Matrix out) {
  const Weight& w = model.embedding.weight;
  for (size_t t = 0; t < tokens.size(); ++t) {
    if (tokens[t] < 0 || tokens[t] >= w.rows)
      throw_error("token {} is outside the vocabulary of {}", tokens[t], w.rows);
    float* row = out.row(static_cast<int64_t>(t));
    rt.kernels.decode_row(w.dtype, w.row(tokens[t]), row, w.cols);
    if (model.embedding_scale != 1.0f)
      for (int64_t i = 0; i < w.cols; ++i) row[i] *= model.embedding_scale;
  }
}

void rms_norm(const Runtime& rt, ConstMatrix x, std::span<const float> gain, float epsilon,
              Matrix y) {
  for_rows(rt, x.rows, [&](int64_t t) {
    rt.kernels.scale_mul(x.row(t), gain.data(), inverse_rms(rt.kernels, x.row(t), x.cols, epsilon),
                         y.row(t), x.cols);
  });
}

void prepare_heads(const Kernels& k, const Attention& a, std::span<const float> norm,
                   int64_t n_heads, float epsilon, const float* cos_sin, float* heads) {
  for (int64_t h = 0; h < n_heads; ++h) {
    float* x = heads + h * a.d_head;
    if (!norm.empty())
      k.scale_mul(x, norm.data(), inverse_rms(k, x, a.d_head, epsilon), x, a.d_head);
    k.rope(x, cos_sin, a.rope_dims / 2, a.rope_neox);
  }
}

}  // namespace mt
