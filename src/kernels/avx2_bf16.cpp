#include <algorithm>

#include "kernels/attributes.h"
#include "kernels/avx2_rows.h"
#include "kernels/denormals.h"
#include "kernels/tables.h"

// The bf16 path with AVX2 and FMA: two fused multiply-adds on the halves of each word.
namespace mt {
namespace {

// The bf16 in the high half of each lane, the low half is not clean.
MT_AVX2_INLINE __m256i rounded(__m256i x) {
  const __m256i size = _mm256_and_si256(x, _mm256_set1_epi32(0x7fffffff));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_cmpgt_epi32(size, _mm256_set1_epi32(0x7f800000));
  const __m256i tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x00800000), size);
  const __m256i quiet = _mm256_or_si256(x, _mm256_set1_epi32(0x00400000));
  const __m256i sign = _mm256_and_si256(x, _mm256_set1_epi32(INT32_MIN));
  return _mm256_blendv_epi8(_mm256_blendv_epi8(up, quiet, nan), sign, tiny);
}

MT_AVX2_INLINE __m256i load(const float* x) {
  return _mm256_castps_si256(_mm256_loadu_ps(x));
}

MT_AVX2_INLINE __m256 high_half(__m256i pair) {
  return _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(-65536)));
}
MT_AVX2_INLINE __m256 low_half(__m256i pair) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
}
MT_AVX2_INLINE __m256i load_pairs(const uint32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

// R rows by 16 columns.
template <int R>
MT_AVX2 void gemm_rows(int64_t n, int64_t k, const uint32_t* a, int64_t a_row, int64_t a_pair,
                       const uint32_t* b, int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  Rows256<R> sum;
  load_rows(sum, c, ldc, n, accumulate);
  for (int64_t p = 0; p < k; ++p) {
    const __m256i b0 = load_pairs(b), b1 = load_pairs(b + 8);
    const __m256 h0 = high_half(b0), h1 = high_half(b1), l0 = low_half(b0), l1 = low_half(b1);
    b += ldb;
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      const __m256i x = _mm256_set1_epi32(static_cast<int>(a[r * a_row + p * a_pair]));
      sum.low[r] = _mm256_fmadd_ps(high_half(x), h0, sum.low[r]);
      sum.high[r] = _mm256_fmadd_ps(high_half(x), h1, sum.high[r]);
      sum.low[r] = _mm256_fmadd_ps(low_half(x), l0, sum.low[r]);
      sum.high[r] = _mm256_fmadd_ps(low_half(x), l1, sum.high[r]);
    }
  }
  store_rows(sum, c, ldc, n);
}

using GemmRows = void (*)(int64_t, int64_t, const uint32_t*, int64_t, int64_t, const uint32_t*,
                          int64_t, float*, int64_t, bool);
// Four rows: eight sums, the halves of b and of a word of a.
constexpr GemmRows gemm_rows_of[5] = {nullptr, gemm_rows<1>, gemm_rows<2>, gemm_rows<3>,
                                      gemm_rows<4>};

}  // namespace

void avx2_gemm_pairs(int64_t m, int64_t n, int64_t k, const uint32_t* a, int64_t a_row,
                     int64_t a_pair, const uint32_t* b, int64_t ldb, float* c, int64_t ldc,
                     bool accumulate) {
  const DenormalsAreZero flags;
  for (int64_t i = 0; i < m; i += 4)
    for (int64_t j = 0; j < n; j += 16)
      gemm_rows_of[std::min<int64_t>(4, m - i)](n - j, k, a + i * a_row, a_row, a_pair, b + j, ldb,
                                                c + i * ldc + j, ldc, accumulate);
}

MT_AVX2 void avx2_round_pairs(const float* x, int64_t n, uint32_t* y) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i first = _mm256_srli_epi32(rounded(load(x + i)), 16);
    const __m256i second = _mm256_srli_epi32(rounded(load(x + i + 8)), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(first, second), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i / 2), packed);
  }
  reference_round_pairs(x + i, n - i, y + i / 2);
}

MT_AVX2 void avx2_interleave_pairs(int64_t n, int64_t k, const float* src, int64_t lds,
                                   uint32_t* dst, int64_t ldd) {
  int64_t j = 0;
  for (; j + 8 <= n; j += 8)
    for (int64_t p = 0; p < k; p += 2) {
      const float* at = src + p * lds + j;
      const __m256i first = _mm256_srli_epi32(rounded(load(at)), 16);
      const __m256i second = p + 1 < k ? rounded(load(at + lds)) : _mm256_setzero_si256();
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + p / 2 * ldd + j),
                          _mm256_blend_epi16(first, second, 0xaa));
    }
  reference_interleave_pairs(n - j, k, src + j, lds, dst + j, ldd);
}

}  // namespace mt
