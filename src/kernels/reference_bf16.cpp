#include <bit>
#include <cmath>

#include "kernels/tables.h"

// The specification of the bf16 path. vdpbf16ps is held to these rules by the tests; tables
// without it set the processor's two denormal flags instead, which do the same.
namespace mt {
namespace {

uint32_t to_bf16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 0x40;  // a quiet NaN stays one
  if ((bits & 0x7f800000) == 0) return bits >> 16 & 0x8000;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

constexpr float kSmallest = 0x1p-126f;

float flushed(float x) {
  return std::fabs(x) < kSmallest ? std::copysign(0.0f, x) : x;
}

// a and b hold bf16 values. "Tiny after rounding": what rounds to the smallest normal number only
// because denormals have fewer bits is flushed as well. The difference below is exact where that
// can happen, and its sign always right.
float fma_flushed(float a, float b, float c) {
  a = flushed(a);
  b = flushed(b);
  c = flushed(c);
  const float sum = std::fma(a, b, c);
  if (std::fabs(sum) == kSmallest) {
    const double sign = std::copysign(1.0, double(sum));
    const double below = sign * double(c) - (0x1p-126 - 0x1p-151) + sign * double(a) * double(b);
    if (below < 0) return std::copysign(0.0f, sum);
  }
  return flushed(sum);
}

float high(uint32_t pair) {
  return std::bit_cast<float>(pair & 0xffff0000u);
}
float low(uint32_t pair) {
  return std::bit_cast<float>(pair << 16);
}

}  // namespace

void reference_round_pairs(const float* x, int64_t n, uint32_t* y) {
  for (int64_t i = 0; i < n; i += 2)
    y[i / 2] = to_bf16(x[i]) | (i + 1 < n ? to_bf16(x[i + 1]) << 16 : 0);
}

void reference_interleave_pairs(int64_t n, int64_t k, const float* src, int64_t lds, uint32_t* dst,
                                int64_t ldd) {
  for (int64_t p = 0; p < k; p += 2)
    for (int64_t j = 0; j < n; ++j)
      dst[p / 2 * ldd + j] =
          to_bf16(src[p * lds + j]) | (p + 1 < k ? to_bf16(src[(p + 1) * lds + j]) << 16 : 0);
}

void reference_transpose_pairs(int64_t n, int64_t k, const uint32_t* src, int64_t lds,
                               uint32_t* dst) {
  for (int64_t p = 0; p < k; ++p)
    for (int64_t j = 0; j < 32; ++j) dst[p * 32 + j] = j < n ? src[j * lds + p] : 0;
}

void reference_gemm_pairs(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t a_row,
                          int64_t a_pair, const uint32_t* b, int64_t ldb, float* c, int64_t ldc,
                          bool accumulate) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float sum = accumulate ? c[i * ldc + j] : 0.0f;
      for (int64_t p = 0; p < k; ++p) {
        const uint32_t x = a[i * a_row + p * a_pair], y = b[p * ldb + j];
        sum = fma_flushed(high(x), high(y), sum);
        sum = fma_flushed(low(x), low(y), sum);
      }
      c[i * ldc + j] = sum;
    }
}

}  // namespace mt
