#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/amx.h"
#include "kernels/attributes.h"
#include "kernels/avx512_rows.h"
#include "kernels/avx512_transpose.h"
#include "kernels/exp_constants.h"
#include "kernels/tables.h"

// The exact path with AVX-512: a vector register holds the reference's 16 lanes.
namespace mt {
namespace {

// R rows of c at once: 2 R accumulators, R <= 12 leaves registers for b and the broadcast of a.
template <int R>
MT_AVX512F void gemm_rows(int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                          int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  Rows512<R> sum;
  load_rows(sum, c, ldc, n, accumulate);
  for (int64_t p = 0; p < k; ++p) {
    __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
    b += ldb;
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      __m512 x = _mm512_set1_ps(a[r * lda + p]);
      sum.low[r] = _mm512_fmadd_ps(x, b0, sum.low[r]);
      sum.high[r] = _mm512_fmadd_ps(x, b1, sum.high[r]);
    }
  }
  store_rows(sum, c, ldc, n);
}

using GemmRows = void (*)(int64_t, int64_t, const float*, int64_t, const float*, int64_t, float*,
                          int64_t, bool);
constexpr GemmRows gemm_rows_of[13] = {nullptr,      gemm_rows<1>, gemm_rows<2>,  gemm_rows<3>,
                                       gemm_rows<4>, gemm_rows<5>, gemm_rows<6>,  gemm_rows<7>,
                                       gemm_rows<8>, gemm_rows<9>, gemm_rows<10>, gemm_rows<11>,
                                       gemm_rows<12>};

MT_AVX512F void gemm_panel(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                           const float* b, int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  // Rows a multiple of 4 KB apart share a set of the first cache, which holds eight lines: twelve
  // such rows are copied out, in chunks, the chain going on through c.
  constexpr int64_t chunk = 256, apart = chunk + 16;
  bool crowded = lda % 1024 == 0 && m > 8 && k >= 16;
  for (int64_t i = 0; i < m; i += 12) {
    int64_t rows = std::min<int64_t>(12, m - i);
    if (!crowded) {
      gemm_rows_of[rows](n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, accumulate);
      continue;
    }
    alignas(64) float copy[12 * apart];
    for (int64_t p = 0; p < k; p += chunk) {
      int64_t depth = std::min(chunk, k - p);
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(copy + r * apart, a + (i + r) * lda + p, static_cast<size_t>(depth) * 4);
      gemm_rows_of[rows](n, depth, copy, apart, b + p * ldb, ldb, c + i * ldc, ldc,
                         accumulate || p > 0);
    }
  }
}

MT_AVX512F void transpose_panel(int64_t n, int64_t k, const float* src, int64_t lds, float* dst) {
  for (int64_t p = 0; p < k; p += 16) {
    __mmask16 columns = first_lanes(k - p);
    for (int64_t j = 0; j < 32; j += 16) {
      __m512 v[16];
      MT_UNROLL
      for (int64_t r = 0; r < 16; ++r) {
        bool there = j + r < n;
        v[r] = _mm512_maskz_loadu_ps(there ? columns : __mmask16{0},
                                     src + (there ? (j + r) * lds + p : 0));
      }
      transpose16(v);
      int64_t rows = std::min<int64_t>(16, k - p);
      MT_UNROLL
      for (int64_t r = 0; r < 16; ++r)
        if (r < rows) _mm512_storeu_ps(dst + (p + r) * 32 + j, v[r]);
    }
  }
}

// Moves only: words go through the same registers.
MT_AVX512F void transpose_pairs(int64_t n, int64_t k, const uint32_t* src, int64_t lds,
                                uint32_t* dst) {
  transpose_panel(n, k, reinterpret_cast<const float*>(src), lds, reinterpret_cast<float*>(dst));
}

MT_AVX512F_INLINE __m512 exponential(__m512 x) {
  using namespace exp_constants;
  __m512 t = _mm512_fmadd_ps(x, _mm512_set1_ps(log2_e), _mm512_set1_ps(magic));
  __m512 n = _mm512_sub_ps(t, _mm512_set1_ps(magic));
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(minus_ln2_high), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(minus_ln2_low), r);
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(q4), r, _mm512_set1_ps(q3));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(q2));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(q1));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(q0));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  __m512i exponent = _mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(t), 23),
                                      _mm512_set1_epi32(0x3f800000));
  __m512 y = _mm512_mul_ps(p, _mm512_castsi512_ps(exponent));
  __mmask16 below = _mm512_cmp_ps_mask(x, _mm512_set1_ps(lowest), _CMP_LT_OQ);
  __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_set1_ps(highest), _CMP_GT_OQ);
  y = _mm512_mask_mov_ps(y, below, _mm512_setzero_ps());
  return _mm512_mask_mov_ps(y, above, _mm512_set1_ps(std::numeric_limits<float>::infinity()));
}

MT_AVX512F double exp_sum(float* x, int64_t n, float shift) {
  __m512d sum0 = _mm512_setzero_pd(), sum1 = _mm512_setzero_pd();
  for (int64_t i = 0; i < n; i += 16) {
    __mmask16 lanes = first_lanes(n - i);
    __m512 e = _mm512_maskz_loadu_ps(lanes, x + i);
    e = exponential(_mm512_sub_ps(e, _mm512_set1_ps(shift)));
    _mm512_mask_storeu_ps(x + i, lanes, e);
    e = _mm512_maskz_mov_ps(lanes, e);
    sum0 = _mm512_add_pd(sum0, _mm512_cvtps_pd(_mm512_castps512_ps256(e)));
    sum1 = _mm512_add_pd(sum1, _mm512_cvtps_pd(_mm512_extractf32x8_ps(e, 1)));
  }
  sum0 = _mm512_add_pd(sum0, sum1);
  __m256d quad = _mm256_add_pd(_mm512_castpd512_pd256(sum0), _mm512_extractf64x4_pd(sum0, 1));
  __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(quad), _mm256_extractf128_pd(quad, 1));
  return _mm_cvtsd_f64(pair) + _mm_cvtsd_f64(_mm_unpackhi_pd(pair, pair));
}

MT_AVX512F void silu_mul(const float* g, const float* u, float* y, int64_t n) {
  __m512 one = _mm512_set1_ps(1.0f);
  for (int64_t i = 0; i < n; i += 16) {
    __mmask16 lanes = first_lanes(n - i);
    __m512 x = _mm512_maskz_loadu_ps(lanes, g + i);
    __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), x));
    __m512 s = _mm512_div_ps(x, _mm512_add_ps(one, e));
    _mm512_mask_storeu_ps(y + i, lanes, _mm512_mul_ps(s, _mm512_maskz_loadu_ps(lanes, u + i)));
  }
}

MT_AVX512F void gelu_mul(const float* g, const float* u, float* y, int64_t n) {
  using namespace exp_constants;
  __m512 one = _mm512_set1_ps(1.0f);
  for (int64_t i = 0; i < n; i += 16) {
    __mmask16 lanes = first_lanes(n - i);
    __m512 x = _mm512_maskz_loadu_ps(lanes, g + i);
    __m512 w = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(gelu_cubic),
                               _mm512_set1_ps(gelu_linear));
    __m512 e = exponential(_mm512_mul_ps(w, x));
    __m512 s = _mm512_div_ps(x, _mm512_add_ps(one, e));
    _mm512_mask_storeu_ps(y + i, lanes, _mm512_mul_ps(s, _mm512_maskz_loadu_ps(lanes, u + i)));
  }
}

MT_AVX512F float dot(const float* x, const float* y, int64_t n) {
  __m512 sum = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    sum = _mm512_fmadd_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(y + i), sum);
  __mmask16 lanes = first_lanes(n - i);
  sum = _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(lanes, x + i),
                              _mm512_maskz_loadu_ps(lanes, y + i), sum, lanes);
  __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
  __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(s2) + _mm_cvtss_f32(_mm_shuffle_ps(s2, s2, 1));
}

MT_AVX512F void axpy(float a, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    __mmask16 lanes = first_lanes(n - i);
    __m512 old = _mm512_maskz_loadu_ps(lanes, y + i);
    __m512 v = _mm512_maskz_loadu_ps(lanes, x + i);
    _mm512_mask_storeu_ps(y + i, lanes, _mm512_fmadd_ps(_mm512_set1_ps(a), v, old));
  }
}

MT_AVX512F void add(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    __mmask16 lanes = first_lanes(n - i);
    __m512 old = _mm512_maskz_loadu_ps(lanes, y + i);
    _mm512_mask_storeu_ps(y + i, lanes, _mm512_add_ps(old, _mm512_maskz_loadu_ps(lanes, x + i)));
  }
}

MT_AVX512F void scale_mul(const float* x, const float* gain, float s, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    __mmask16 lanes = first_lanes(n - i);
    __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), _mm512_set1_ps(s));
    v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(lanes, gain + i));
    _mm512_mask_storeu_ps(y + i, lanes, v);
  }
}

// max_ps(x, m) is "x > m ? x : m", NaNs and zeros included.
MT_AVX512F float maximum(const float* x, int64_t n) {
  __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 m = lowest;
  for (int64_t i = 0; i < n; i += 16)
    m = _mm512_max_ps(_mm512_mask_loadu_ps(lowest, first_lanes(n - i), x + i), m);
  __m256 m8 = _mm256_max_ps(_mm512_extractf32x8_ps(m, 1), _mm512_castps512_ps256(m));
  __m128 m4 = _mm_max_ps(_mm256_extractf128_ps(m8, 1), _mm256_castps256_ps128(m8));
  __m128 m2 = _mm_max_ps(_mm_movehl_ps(m4, m4), m4);
  return _mm_cvtss_f32(_mm_max_ps(_mm_shuffle_ps(m2, m2, 1), m2));
}

MT_AVX512F void rope(float* x, const float* cos_sin, int64_t n_pairs, bool neox) {
  if (!neox) {
    for (int64_t i = 0; i < 2 * n_pairs; i += 16) {
      __mmask16 lanes = first_lanes(2 * n_pairs - i);
      __m512 v = _mm512_maskz_loadu_ps(lanes, x + i);
      __m512 cs = _mm512_maskz_loadu_ps(lanes, cos_sin + i);
      __m512 turned = _mm512_mul_ps(_mm512_permute_ps(v, 0xb1), _mm512_movehdup_ps(cs));
      v = _mm512_fmaddsub_ps(v, _mm512_moveldup_ps(cs), turned);
      _mm512_mask_storeu_ps(x + i, lanes, v);
    }
    return;
  }
  __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int64_t i = 0; i < n_pairs; i += 16) {
    __mmask16 lanes = first_lanes(n_pairs - i);
    int64_t values = 2 * (n_pairs - i);
    __m512 cs0 = _mm512_maskz_loadu_ps(first_lanes(values), cos_sin + 2 * i);
    __m512 cs1 = _mm512_maskz_loadu_ps(first_lanes(values - 16), cos_sin + 2 * i + 16);
    __m512 cos = _mm512_permutex2var_ps(cs0, even, cs1);
    __m512 sin = _mm512_permutex2var_ps(cs0, odd, cs1);
    __m512 a = _mm512_maskz_loadu_ps(lanes, x + i);
    __m512 b = _mm512_maskz_loadu_ps(lanes, x + n_pairs + i);
    _mm512_mask_storeu_ps(x + i, lanes, _mm512_fmsub_ps(a, cos, _mm512_mul_ps(b, sin)));
    _mm512_mask_storeu_ps(x + n_pairs + i, lanes, _mm512_fmadd_ps(b, cos, _mm512_mul_ps(a, sin)));
  }
}

}  // namespace

const Kernels& avx512f_kernels() {
  static const Kernels table = {
      .name = "avx512f",
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
      .decode_row = avx512_decode_row,
      .round_pairs = avx2_round_pairs,
      .interleave_pairs = avx2_interleave_pairs,
      .transpose_pairs = transpose_pairs,
      .gemm_pairs = avx512f_gemm_pairs,
      .fast_pairs = false,
      .gemm_tiles = nullptr,
      .quantised_bytes = reference_quantised_bytes,
      .quantise = avx2_quantise,
      .has_rows_dot = reference_has_rows_dot,
      .rows_dot = avx2_rows_dot,
  };
  return table;
}

const Kernels& avx512_kernels() {
  static const Kernels table = [] {
    Kernels t = avx512f_kernels();
    t.name = "avx512";
    t.decode_row = avx512_vbmi_decode_row;
    t.quantise = avx512_quantise;
    t.has_rows_dot = avx512_has_rows_dot;
    t.rows_dot = avx512_rows_dot;
    return t;
  }();
  return table;
}

const Kernels& avx512bf16_kernels() {
  static const Kernels table = [] {
    Kernels t = avx512_kernels();
    t.name = "avx512bf16";
    t.round_pairs = avx512bf16_round_pairs;
    t.interleave_pairs = avx512bf16_interleave_pairs;
    t.gemm_pairs = avx512bf16_gemm_pairs;
    t.fast_pairs = true;
    return t;
  }();
  return table;
}

const Kernels& avx512amx_kernels() {
  static const Kernels table = [] {
    Kernels t = avx512bf16_kernels();
    t.name = "avx512amx";
    t.gemm_tiles = amx_gemm_pairs;
    return t;
  }();
  return table;
}

}  // namespace mt
