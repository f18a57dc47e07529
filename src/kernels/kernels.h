#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "dtype/dtype.h"

namespace mt {

// Where activations are two int8 terms, a step of the first is so many of the second.
inline constexpr int kSecondShift = 7, kSecondSteps = 1 << kSecondShift;

// One table per instruction set; reference.cpp is the specification. Every function of the exact
// path gives bit-identical results in every table: sums run in the documented order with one
// fused multiply-add per term.
struct Kernels {
  // "reference", "avx2", "avx512f", "avx512" (with VNNI and VBMI), "avx512bf16" (and BF16),
  // "avx512amx" (and AMX), "neon"
  std::string_view name;

  // ---- exact path ----
  // c[i,j] = (accumulate ? c[i,j] : 0) + sum_{p=0..k-1, in this order, by fma} a[i,p] * b[p,j]
  // a: [m,k] rows lda apart; b: [k,n] rows ldb apart, readable to a full 32 columns in every row
  // (the caller pads); c: [m,n] rows ldc apart; n in 1..32, any m and k >= 0.
  void (*gemm_panel)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                     int64_t ldb, float* c, int64_t ldc, bool accumulate);
  // dst[p*32 + j] = src[j*lds + p] for j < n (zero for n <= j < 32), p < k. n in 1..32.
  void (*transpose_panel)(int64_t n, int64_t k, const float* src, int64_t lds, float* dst);
  // x[i] = exp(x[i] - shift), returns the sum in f64 (16 interleaved partial sums, added pairwise)
  // Relative error below 1e-6; exp of anything below -87.3 is 0, of anything above 88.37 inf.
  double (*exp_sum)(float* x, int64_t n, float shift);
  // y[i] = silu(g[i]) * u[i] = g/(1+exp(-g)) * u
  void (*silu_mul)(const float* g, const float* u, float* y, int64_t n);
  // y[i] = gelu_tanh(g[i]) * u[i]; tanh form, 0.5 g (1 + tanh(0.7978845608 (g + 0.044715 g^3)))
  void (*gelu_mul)(const float* g, const float* u, float* y, int64_t n);
  // sum x_i * y_i: 16 interleaved fma chains, added pairwise at the end
  float (*dot)(const float* x, const float* y, int64_t n);
  // y += a * x by fma
  void (*axpy)(float a, const float* x, float* y, int64_t n);
  // y += x
  void (*add)(const float* x, float* y, int64_t n);
  // y = (x * s) * gain, two rounded multiplications in that order; y may be x
  void (*scale_mul)(const float* x, const float* gain, float s, float* y, int64_t n);
  // The largest x, NaNs passed over; -inf where there is none.
  float (*max)(const float* x, int64_t n);
  // Rotates one head of 2*n_pairs values in place: pair i is (x[2i], x[2i+1]), or with neox
  // (x[i], x[i+n_pairs]); cos at cos_sin[2i], sin at cos_sin[2i+1].
  // a' = fma(a, cos, -(b*sin)), b' = fma(b, cos, a*sin)
  void (*rope)(float* x, const float* cos_sin, int64_t n_pairs, bool neox);
  // the same values as mt::decode_row, bit for bit, faster
  void (*decode_row)(Dtype dtype, const std::byte* src, float* dst, int64_t n);

  // ---- bf16 path (bit-identical in every table too) ----
  // Values are rounded to bf16, to nearest even, denormals to zero. Two values that follow each
  // other in a sum lie in one 32-bit word, a "pair": the first in the low half.
  // y[p] = {x[2p], x[2p+1]}, zero where 2p+1 == n; y: ceil(n/2) words
  void (*round_pairs)(const float* x, int64_t n, uint32_t* y);
  // dst[p*ldd + j] = {src[2p*lds + j], src[(2p+1)*lds + j]}, zero where 2p+1 == k; j < n, 2p < k
  void (*interleave_pairs)(int64_t n, int64_t k, const float* src, int64_t lds, uint32_t* dst,
                           int64_t ldd);
  // transpose_panel of words.
  void (*transpose_pairs)(int64_t n, int64_t k, const uint32_t* src, int64_t lds, uint32_t* dst);
  // gemm_panel of pairs: for p = 0..k-1 in this order c = fma(a.high, b.high, c), then
  // c = fma(a.low, b.low, c), each with denormal operands and results (tiny after rounding) taken
  // for zeros of their sign, as the instruction vdpbf16ps does it.
  // a: word (i, p) at a[i*a_row + p*a_pair], one of the two strides 1; b: [k,n] words, rows ldb
  // apart, readable to a full 32 columns; c: [m,n]; n in 1..32.
  void (*gemm_pairs)(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t a_row,
                     int64_t a_pair, const uint32_t* b, int64_t ldb, float* c, int64_t ldc,
                     bool accumulate);
  // True where gemm_pairs is faster than gemm_panel.
  bool fast_pairs;
  // The tile unit's product of pairs (kernels/amx.h) for the fast path's batches; nullptr where
  // there is none.
  void (*gemm_tiles)(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t lda,
                     const uint32_t* b, int64_t ldb, float* c, int64_t ldc, bool accumulate);

  // ---- fast path (tables may differ in rounding; bounded by tests) ----
  // Activations quantised for the dot products below: x[n] -> opaque, quantised_bytes(n, terms)
  // bytes. n is a multiple of 32. Of two terms the second is what rounding to the first left of x,
  // in steps of 1/kSecondSteps of its own: together 14 bits.
  int64_t (*quantised_bytes)(int64_t n, int terms);
  void (*quantise)(const float* x, int64_t n, int terms, std::byte* q);
  // True where rows_dot takes this format.
  bool (*has_rows_dot)(Dtype dtype);
  // y[t*ldy + r] = sum_i W[r,i] * x[t,i] for `rows` consecutive rows of a packed weight; each of
  // the `tokens` at q + t*q_bytes, from quantise() in that many terms (of which formats without
  // blocks make no use). A token's results are the same bits whatever others go with it.
  void (*rows_dot)(Dtype dtype, const std::byte* w, int64_t row_bytes, int64_t rows,
                   const std::byte* q, int64_t q_bytes, int64_t tokens, int terms, int64_t n,
                   float* y, int64_t ldy);
};

const Kernels& reference_kernels();
// The best table that this processor runs, or the one MICROTOME_ISA names (reference, avx2,
// avx512f, avx512, avx512bf16, avx512amx, neon). Throws Error for a name that is unknown or not
// supported here.
const Kernels& select_kernels();
// Every table this processor runs, reference first: for tests and benchmarks.
std::vector<const Kernels*> available_kernels();

}  // namespace mt
