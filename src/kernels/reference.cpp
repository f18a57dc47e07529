#include <bit>
#include <cmath>
#include <limits>

#include "kernels/exp_constants.h"
#include "kernels/kernels.h"
#include "kernels/tables.h"

// The specification of every kernel: plain loops, one rounding per written operation.
namespace mt {

template <class T>
T add_pairwise(T (&lane)[16]) {
  for (int w = 8; w > 0; w /= 2)
    for (int l = 0; l < w; ++l) lane[l] = lane[l] + lane[l + w];
  return lane[0];
}
template float add_pairwise(float (&)[16]);
template double add_pairwise(double (&)[16]);

namespace {

void gemm_panel(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      float sum = accumulate ? c[i * ldc + j] : 0.0f;
      for (int64_t p = 0; p < k; ++p) sum = std::fma(a[i * lda + p], b[p * ldb + j], sum);
      c[i * ldc + j] = sum;
    }
  }
}

void transpose_panel(int64_t n, int64_t k, const float* src, int64_t lds, float* dst) {
  for (int64_t p = 0; p < k; ++p)
    for (int64_t j = 0; j < 32; ++j) dst[p * 32 + j] = j < n ? src[j * lds + p] : 0.0f;
}

float exponential(float x) {
  using namespace exp_constants;
  float t = std::fma(x, log2_e, magic);
  float n = t - magic;
  float r = std::fma(n, minus_ln2_high, x);
  r = std::fma(n, minus_ln2_low, r);
  float p = q4;
  for (float q : {q3, q2, q1, q0, 1.0f, 1.0f}) p = std::fma(p, r, q);
  uint32_t exponent = (std::bit_cast<uint32_t>(t) << 23) + 0x3f800000u;
  float y = p * std::bit_cast<float>(exponent);
  if (x < lowest) y = 0.0f;
  if (x > highest) y = std::numeric_limits<float>::infinity();
  return y;
}

double exp_sum(float* x, int64_t n, float shift) {
  double lane[16] = {};
  for (int64_t i = 0; i < n; ++i) {
    x[i] = exponential(x[i] - shift);
    lane[i % 16] += double(x[i]);
  }
  return add_pairwise(lane);
}

void silu_mul(const float* g, const float* u, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = g[i] / (1.0f + exponential(0.0f - g[i])) * u[i];
}

void gelu_mul(const float* g, const float* u, float* y, int64_t n) {
  using namespace exp_constants;
  for (int64_t i = 0; i < n; ++i) {
    float w = std::fma(g[i] * g[i], gelu_cubic, gelu_linear) * g[i];
    y[i] = g[i] / (1.0f + exponential(w)) * u[i];
  }
}

float dot(const float* x, const float* y, int64_t n) {
  float lane[16] = {};
  for (int64_t i = 0; i < n; ++i) lane[i % 16] = std::fma(x[i], y[i], lane[i % 16]);
  return add_pairwise(lane);
}

void axpy(float a, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = std::fma(a, x[i], y[i]);
}

void add(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = y[i] + x[i];
}

void scale_mul(const float* x, const float* gain, float s, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * s * gain[i];
}

// Sixteen interleaved maxima, so that the sign of a zero is the same in every table too.
float maximum(const float* x, int64_t n) {
  float lane[16];
  for (float& l : lane) l = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) lane[i % 16] = x[i] > lane[i % 16] ? x[i] : lane[i % 16];
  for (int w = 8; w > 0; w /= 2)
    for (int l = 0; l < w; ++l) lane[l] = lane[l + w] > lane[l] ? lane[l + w] : lane[l];
  return lane[0];
}

void rope(float* x, const float* cos_sin, int64_t n_pairs, bool neox) {
  for (int64_t i = 0; i < n_pairs; ++i) {
    float& first = neox ? x[i] : x[2 * i];
    float& second = neox ? x[i + n_pairs] : x[2 * i + 1];
    float a = first, b = second, cos = cos_sin[2 * i], sin = cos_sin[2 * i + 1];
    first = std::fma(a, cos, -(b * sin));
    second = std::fma(b, cos, a * sin);
  }
}

}  // namespace

const Kernels& reference_kernels() {
  static const Kernels table = {
      .name = "reference",
      .gemm_panel = gemm_panel,
      .transpose_panel = transpose_panel,
      .exp_sum = exp_sum,
      .silu_mul = silu_mul,
      .gelu_mul = gelu_mul,
      .dot = dot,
      .axpy = axpy,
      .add = add,
      .scale_mul = scale_mul,
      .max = maximum,
      .rope = rope,
      .decode_row = mt::decode_row,
      .round_pairs = reference_round_pairs,
      .interleave_pairs = reference_interleave_pairs,
      .transpose_pairs = reference_transpose_pairs,
      .gemm_pairs = reference_gemm_pairs,
      .fast_pairs = false,
      .gemm_tiles = nullptr,
      .quantised_bytes = reference_quantised_bytes,
      .quantise = reference_quantise,
      .has_rows_dot = reference_has_rows_dot,
      .rows_dot = reference_rows_dot,
  };
  return table;
}

}  // namespace mt
