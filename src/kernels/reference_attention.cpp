#include <algorithm>

#include "kernels/attention.h"

namespace mt {
namespace {

void scores(int64_t heads, int64_t n, int64_t d, const float* q, int64_t ldq, const float* keys,
            int64_t ldk, float* s, int64_t lds) {
  for (int64_t j = 0; j < n; ++j)
    for (int64_t h = 0; h < heads; ++h) {
      float sum = 0.0f;
      for (int64_t i = 0; i < d; ++i) sum += q[h * ldq + i] * keys[j * ldk + i];
      s[h * lds + j] = sum;
    }
}

void mix(int64_t heads, int64_t n, int64_t d, const float* p, int64_t ldp, const float* values,
         int64_t ldv, float* out, int64_t ldo) {
  for (int64_t h = 0; h < heads; ++h) std::fill_n(out + h * ldo, d, 0.0f);
  for (int64_t j = 0; j < n; ++j)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < d; ++i) out[h * ldo + i] += p[h * ldp + j] * values[j * ldv + i];
}

}  // namespace

const AttentionKernels& reference_attention_kernels() {
  static const AttentionKernels table = {.scores = scores, .mix = mix};
  return table;
}

const AttentionKernels& attention_kernels(const Kernels& table) {
  return table.name.starts_with("avx512") ? avx512_attention_kernels()
                                          : reference_attention_kernels();
}

}  // namespace mt
