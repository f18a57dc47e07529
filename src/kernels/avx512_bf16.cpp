#include <algorithm>

#include "kernels/attributes.h"
#include "kernels/avx512_rows.h"
#include "kernels/denormals.h"
#include "kernels/tables.h"

// The bf16 path with AVX-512: vdpbf16ps where there is one, else two fused multiply-adds on the
// halves of each word.
namespace mt {
namespace {

// Word (r, p) of a stands at a[r*stride + p], or at a[p*stride + r] where the pairs lie apart.
template <bool kPairsApart>
__attribute__((always_inline)) inline uint32_t word(const uint32_t* a, int64_t stride, int64_t r,
                                                    int64_t p) {
  return kPairsApart ? a[p * stride + r] : a[r * stride + p];
}

// R rows of c at once, as in the f32 product: 2 R accumulators.
template <int R, bool kPairsApart>
MT_AVX512BF16 void gemm_native(int64_t n, int64_t k, const uint32_t* a, int64_t stride,
                               const uint32_t* b, int64_t ldb, float* c, int64_t ldc,
                               bool accumulate) {
  Rows512<R> sum;
  load_rows(sum, c, ldc, n, accumulate);
  for (int64_t p = 0; p < k; ++p) {
    const auto b0 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b));
    const auto b1 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + 16));
    b += ldb;
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      const auto x = reinterpret_cast<__m512bh>(
          _mm512_set1_epi32(static_cast<int>(word<kPairsApart>(a, stride, r, p))));
      sum.low[r] = _mm512_dpbf16_ps(sum.low[r], x, b0);
      sum.high[r] = _mm512_dpbf16_ps(sum.high[r], x, b1);
    }
  }
  store_rows(sum, c, ldc, n);
}

MT_AVX512F_INLINE __m512 high_half(__m512i pair) {
  return _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(-65536)));
}
MT_AVX512F_INLINE __m512 low_half(__m512i pair) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
}

template <int R, bool kPairsApart>
MT_AVX512F void gemm_halves(int64_t n, int64_t k, const uint32_t* a, int64_t stride,
                            const uint32_t* b, int64_t ldb, float* c, int64_t ldc,
                            bool accumulate) {
  Rows512<R> sum;
  load_rows(sum, c, ldc, n, accumulate);
  for (int64_t p = 0; p < k; ++p) {
    const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 16);
    const __m512 h0 = high_half(b0), h1 = high_half(b1), l0 = low_half(b0), l1 = low_half(b1);
    b += ldb;
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(word<kPairsApart>(a, stride, r, p)));
      sum.low[r] = _mm512_fmadd_ps(high_half(x), h0, sum.low[r]);
      sum.high[r] = _mm512_fmadd_ps(high_half(x), h1, sum.high[r]);
      sum.low[r] = _mm512_fmadd_ps(low_half(x), l0, sum.low[r]);
      sum.high[r] = _mm512_fmadd_ps(low_half(x), l1, sum.high[r]);
    }
  }
  store_rows(sum, c, ldc, n);
}

using GemmRows = void (*)(int64_t, int64_t, const uint32_t*, int64_t, const uint32_t*, int64_t,
                          float*, int64_t, bool);

#define MT_ROWS_OF(f, apart)                                                               \
  {                                                                                        \
    nullptr, f<1, apart>, f<2, apart>, f<3, apart>, f<4, apart>, f<5, apart>, f<6, apart>, \
        f<7, apart>, f<8, apart>, f<9, apart>, f<10, apart>, f<11, apart>, f<12, apart>    \
  }
constexpr GemmRows native_rows[2][13] = {MT_ROWS_OF(gemm_native, false),
                                         MT_ROWS_OF(gemm_native, true)};
constexpr GemmRows halves_rows[2][13] = {MT_ROWS_OF(gemm_halves, false),
                                         MT_ROWS_OF(gemm_halves, true)};
#undef MT_ROWS_OF

void by_rows(const GemmRows (&of)[2][13], int64_t most, int64_t m, int64_t n, int64_t k,
             const uint32_t* a, int64_t a_row, int64_t a_pair, const uint32_t* b, int64_t ldb,
             float* c, int64_t ldc, bool accumulate) {
  const bool apart = a_pair != 1;
  for (int64_t i = 0; i < m; i += most) {
    const int64_t rows = std::min(most, m - i);
    of[apart][rows](n, k, a + i * a_row, apart ? a_pair : a_row, b, ldb, c + i * ldc, ldc,
                    accumulate);
  }
}

}  // namespace

void avx512f_gemm_pairs(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t a_row,
                        int64_t a_pair, const uint32_t* b, int64_t ldb, float* c, int64_t ldc,
                        bool accumulate) {
  const DenormalsAreZero flags;
  // Ten rows: the halves of b and of a word of a need six registers.
  by_rows(halves_rows, 10, m, n, k, a, a_row, a_pair, b, ldb, c, ldc, accumulate);
}

void avx512bf16_gemm_pairs(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t a_row,
                           int64_t a_pair, const uint32_t* b, int64_t ldb, float* c, int64_t ldc,
                           bool accumulate) {
  by_rows(native_rows, 12, m, n, k, a, a_row, a_pair, b, ldb, c, ldc, accumulate);
}

MT_AVX512BF16 void avx512bf16_round_pairs(const float* x, int64_t n, uint32_t* y) {
  for (int64_t i = 0; i < n; i += 32) {
    const __m512 first = _mm512_maskz_loadu_ps(first_lanes(n - i), x + i);
    const __m512 second = _mm512_maskz_loadu_ps(first_lanes(n - i - 16), x + i + 16);
    const auto pairs = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
    _mm512_mask_storeu_epi32(y + i / 2, first_lanes((n - i + 1) / 2), pairs);
  }
}

MT_AVX512BF16 void avx512bf16_interleave_pairs(int64_t n, int64_t k, const float* src, int64_t lds,
                                               uint32_t* dst, int64_t ldd) {
  // 16-bit lanes 0, 16, 1, 17, ...
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i order =
      _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(16)), 16));
  for (int64_t p = 0; p < k; p += 2)
    for (int64_t j = 0; j < n; j += 16) {
      const __mmask16 lanes = first_lanes(n - j);
      const float* at = src + p * lds + j;
      const __m512 first = _mm512_maskz_loadu_ps(lanes, at);
      const __m512 second =
          p + 1 < k ? _mm512_maskz_loadu_ps(lanes, at + lds) : _mm512_setzero_ps();
      const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
      _mm512_mask_storeu_epi32(dst + p / 2 * ldd + j, lanes, _mm512_permutexvar_epi16(order, both));
    }
}

}  // namespace mt
