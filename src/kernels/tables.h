#pragma once
#include "kernels/kernels.h"

// What the files of this room share: the tables of the instruction sets, and the layout of
// quantised activations. Nothing here may be inline code, since a copy compiled for one
// instruction set could be linked into another.
namespace mt {

const Kernels& avx2_kernels();
const Kernels& avx512f_kernels();     // the dot products of AVX2
const Kernels& avx512_kernels();      // needs VNNI and VBMI
const Kernels& avx512bf16_kernels();  // and BF16
const Kernels& avx512amx_kernels();   // and AMX
const Kernels& neon_kernels();

// 16 lanes to one: lane l takes lane l + 8, then l + 4, l + 2, l + 1. Of float and of double.
template <class T>
T add_pairwise(T (&lane)[16]);

// Quantised activations of n values (n a multiple of 32), the parts one after another, each
// padded with zeros to a multiple of 64 bytes and the vector to a multiple of 256 values:
//   f32  x[n]         the activations themselves, for F32, F16 and BF16 weights
//   i8   q[n]         round(x / d) with one d per 32 values, |q| <= 127
//   f32  d[n / 32]    max |x| / 127; 0 where that is below 1e-38; NaN where an x is not finite
//   f32  sum[n / 16]  d * (sum of the 16 q), for formats with a minimum per sub-block
// Of two terms the second follows in the same layout: q is the rest of that rounding times
// kSecondSteps, |q| <= 64, and d that much smaller.
struct QuantisedLayout {
  int64_t q, d, sum, bytes;
};
QuantisedLayout quantised_layout(int64_t n);
// Copies x and clears what the padding holds.
void quantise_padding(const float* x, int64_t n, std::byte* blob);
// From the bits of the largest |x|, compared as integers: d, and 1 / d or 0 for codes of 0.
void quantise_scale(uint32_t largest_bits, float& d, float& inverse);

void avx2_decode_row(Dtype dtype, const std::byte* src, float* dst, int64_t n);
void avx512_decode_row(Dtype dtype, const std::byte* src, float* dst, int64_t n);
void avx512_vbmi_decode_row(Dtype dtype, const std::byte* src, float* dst, int64_t n);

// The bf16 path of each table.
void reference_round_pairs(const float* x, int64_t n, uint32_t* y);
void reference_interleave_pairs(int64_t n, int64_t k, const float* src, int64_t lds, uint32_t* dst,
                                int64_t ldd);
void reference_transpose_pairs(int64_t n, int64_t k, const uint32_t* src, int64_t lds,
                               uint32_t* dst);
void reference_gemm_pairs(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t a_row,
                          int64_t a_pair, const uint32_t* b, int64_t ldb, float* c, int64_t ldc,
                          bool accumulate);
void avx2_round_pairs(const float* x, int64_t n, uint32_t* y);
void avx2_interleave_pairs(int64_t n, int64_t k, const float* src, int64_t lds, uint32_t* dst,
                           int64_t ldd);
void avx2_gemm_pairs(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t a_row,
                     int64_t a_pair, const uint32_t* b, int64_t ldb, float* c, int64_t ldc,
                     bool accumulate);
void avx512f_gemm_pairs(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t a_row,
                        int64_t a_pair, const uint32_t* b, int64_t ldb, float* c, int64_t ldc,
                        bool accumulate);
void avx512bf16_round_pairs(const float* x, int64_t n, uint32_t* y);
void avx512bf16_interleave_pairs(int64_t n, int64_t k, const float* src, int64_t lds, uint32_t* dst,
                                 int64_t ldd);
void avx512bf16_gemm_pairs(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t a_row,
                           int64_t a_pair, const uint32_t* b, int64_t ldb, float* c, int64_t ldc,
                           bool accumulate);

void avx2_quantise(const float* x, int64_t n, int terms, std::byte* blob);
void avx512_quantise(const float* x, int64_t n, int terms, std::byte* blob);
void avx2_rows_dot(Dtype dtype, const std::byte* w, int64_t row_bytes, int64_t rows,
                   const std::byte* q, int64_t q_bytes, int64_t tokens, int terms, int64_t n,
                   float* y, int64_t ldy);
bool avx512_has_rows_dot(Dtype dtype);
void avx512_rows_dot(Dtype dtype, const std::byte* w, int64_t row_bytes, int64_t rows,
                     const std::byte* q, int64_t q_bytes, int64_t tokens, int terms, int64_t n,
                     float* y, int64_t ldy);

int64_t reference_quantised_bytes(int64_t n, int terms);
void reference_quantise(const float* x, int64_t n, int terms, std::byte* q);
bool reference_has_rows_dot(Dtype dtype);
void reference_rows_dot(Dtype dtype, const std::byte* w, int64_t row_bytes, int64_t rows,
                        const std::byte* q, int64_t q_bytes, int64_t tokens, int terms, int64_t n,
                        float* y, int64_t ldy);

}  // namespace mt
