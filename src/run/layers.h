#pragma once
#include <span>

#include "base/checked.h"
#include "run/forward.h"

namespace mt {

// Calls fn(row) for every row; few rows stay on this thread.
template <class F>
void for_rows(const Runtime& rt, int64_t n, F&& fn) {
  constexpr int64_t kPiece = 16;
  if (n <= 2)
    for (int64_t t = 0; t < n; ++t) fn(t);
  else
    rt.pool.parallel_for(ceil_div(n, kPiece), [&](int64_t piece, int) {
      for (int64_t t = piece * kPiece; t < std::min(n, (piece + 1) * kPiece); ++t) fn(t);
    });
}

// out[t,:] = embedding row of tokens[t], scaled as the architecture asks. out:[n_tokens,d_model]
// Throws Error where a token is outside the vocabulary.
void embed(const Runtime& rt, const Model& model, std::span<const int32_t> tokens, Matrix out);

// y[t,:] = x[t,:] / sqrt(mean(x[t,:]^2) + epsilon) * gain. y may be x.
void rms_norm(const Runtime& rt, ConstMatrix x, std::span<const float> gain, float epsilon,
              Matrix y);

// In place on the heads of one position: RMSNorm of each (if norm is not empty), then RoPE.
void prepare_heads(const Kernels& k, const Attention& a, std::span<const float> norm,
                   int64_t n_heads, float epsilon, const float* cos_sin, float* heads);

}  // namespace mt
