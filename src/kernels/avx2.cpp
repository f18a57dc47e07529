#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/attributes.h"
#include "kernels/avx2_rows.h"
#include "kernels/exp_constants.h"
#include "kernels/tables.h"

// The exact path with AVX2 and FMA: the reference's 16 lanes are two vector registers.
namespace mt {
namespace {

// R rows by 16 columns: 2 R accumulators, R <= 6 leaves registers for b and the broadcast of a.
template <int R>
MT_AVX2 void gemm_rows(int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                       int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  Rows256<R> sum;
  load_rows(sum, c, ldc, n, accumulate);
  for (int64_t p = 0; p < k; ++p) {
    __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
    b += ldb;
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      __m256 x = _mm256_set1_ps(a[r * lda + p]);
      sum.low[r] = _mm256_fmadd_ps(x, b0, sum.low[r]);
      sum.high[r] = _mm256_fmadd_ps(x, b1, sum.high[r]);
    }
  }
  store_rows(sum, c, ldc, n);
}

using GemmRows = void (*)(int64_t, int64_t, const float*, int64_t, const float*, int64_t, float*,
                          int64_t, bool);
constexpr GemmRows gemm_rows_of[7] = {nullptr,      gemm_rows<1>, gemm_rows<2>, gemm_rows<3>,
                                      gemm_rows<4>, gemm_rows<5>, gemm_rows<6>};

MT_AVX2 void gemm_panel(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda,
                        const float* b, int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  for (int64_t i = 0; i < m; i += 6) {
    int64_t rows = std::min<int64_t>(6, m - i);
    for (int64_t j = 0; j < n; j += 16)
      gemm_rows_of[rows](n - j, k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc, accumulate);
  }
}

MT_AVX2 void transpose_panel(int64_t n, int64_t k, const float* src, int64_t lds, float* dst) {
  for (int64_t p = 0; p < k; p += 8) {
    __m256i columns = first_lanes(k - p);
    int64_t rows = std::min<int64_t>(8, k - p);
    for (int64_t j = 0; j < 32; j += 8) {
      __m256 v[8], t[8];
      MT_UNROLL
      for (int64_t r = 0; r < 8; ++r) {
        v[r] =
            j + r < n ? _mm256_maskload_ps(src + (j + r) * lds + p, columns) : _mm256_setzero_ps();
      }
      MT_UNROLL
      for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
      }
      MT_UNROLL
      for (int i = 0; i < 8; i += 4) {
        v[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        v[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        v[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        v[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
      }
      MT_UNROLL
      for (int i = 0; i < 4; ++i) {
        t[i] = _mm256_permute2f128_ps(v[i], v[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(v[i], v[i + 4], 0x31);
      }
      MT_UNROLL
      for (int64_t r = 0; r < 8; ++r)
        if (r < rows) _mm256_storeu_ps(dst + (p + r) * 32 + j, t[r]);
    }
  }
}

// Moves only: words go through the same registers.
MT_AVX2 void transpose_pairs(int64_t n, int64_t k, const uint32_t* src, int64_t lds,
                             uint32_t* dst) {
  transpose_panel(n, k, reinterpret_cast<const float*>(src), lds, reinterpret_cast<float*>(dst));
}

MT_AVX2_INLINE __m256 exponential(__m256 x) {
  using namespace exp_constants;
  __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(log2_e), _mm256_set1_ps(magic));
  __m256 n = _mm256_sub_ps(t, _mm256_set1_ps(magic));
  __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(minus_ln2_high), x);
  r = _mm256_fmadd_ps(n, _mm256_set1_ps(minus_ln2_low), r);
  __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(q4), r, _mm256_set1_ps(q3));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(q2));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(q1));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(q0));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  __m256i exponent = _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(t), 23),
                                      _mm256_set1_epi32(0x3f800000));
  __m256 y = _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
  __m256 below = _mm256_cmp_ps(x, _mm256_set1_ps(lowest), _CMP_LT_OQ);
  __m256 above = _mm256_cmp_ps(x, _mm256_set1_ps(highest), _CMP_GT_OQ);
  y = _mm256_blendv_ps(y, _mm256_setzero_ps(), below);
  return _mm256_blendv_ps(y, _mm256_set1_ps(std::numeric_limits<float>::infinity()), above);
}

MT_AVX2 double exp_sum(float* x, int64_t n, float shift) {
  __m256d sum[4] = {};
  for (int64_t i = 0; i < n; i += 16) {
    MT_UNROLL
    for (int half = 0; half < 2; ++half) {
      __m256i lanes = first_lanes(n - i - 8 * half);
      float* at = x + std::min(i + 8 * half, n);
      __m256 e = exponential(_mm256_sub_ps(_mm256_maskload_ps(at, lanes), _mm256_set1_ps(shift)));
      _mm256_maskstore_ps(at, lanes, e);
      e = _mm256_and_ps(e, _mm256_castsi256_ps(lanes));
      sum[2 * half] = _mm256_add_pd(sum[2 * half], _mm256_cvtps_pd(_mm256_castps256_ps128(e)));
      sum[2 * half + 1] =
          _mm256_add_pd(sum[2 * half + 1], _mm256_cvtps_pd(_mm256_extractf128_ps(e, 1)));
    }
  }
  __m256d quad = _mm256_add_pd(_mm256_add_pd(sum[0], sum[2]), _mm256_add_pd(sum[1], sum[3]));
  __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(quad), _mm256_extractf128_pd(quad, 1));
  return _mm_cvtsd_f64(pair) + _mm_cvtsd_f64(_mm_unpackhi_pd(pair, pair));
}

MT_AVX2 void silu_mul(const float* g, const float* u, float* y, int64_t n) {
  __m256 one = _mm256_set1_ps(1.0f);
  for (int64_t i = 0; i < n; i += 8) {
    __m256i lanes = first_lanes(n - i);
    __m256 x = _mm256_maskload_ps(g + i, lanes);
    __m256 e = exponential(_mm256_sub_ps(_mm256_setzero_ps(), x));
    __m256 s = _mm256_div_ps(x, _mm256_add_ps(one, e));
    _mm256_maskstore_ps(y + i, lanes, _mm256_mul_ps(s, _mm256_maskload_ps(u + i, lanes)));
  }
}

MT_AVX2 void gelu_mul(const float* g, const float* u, float* y, int64_t n) {
  using namespace exp_constants;
  __m256 one = _mm256_set1_ps(1.0f);
  for (int64_t i = 0; i < n; i += 8) {
    __m256i lanes = first_lanes(n - i);
    __m256 x = _mm256_maskload_ps(g + i, lanes);
    __m256 w = _mm256_fmadd_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(gelu_cubic),
                               _mm256_set1_ps(gelu_linear));
    __m256 e = exponential(_mm256_mul_ps(w, x));
    __m256 s = _mm256_div_ps(x, _mm256_add_ps(one, e));
    _mm256_maskstore_ps(y + i, lanes, _mm256_mul_ps(s, _mm256_maskload_ps(u + i, lanes)));
  }
}

MT_AVX2 float dot(const float* x, const float* y, int64_t n) {
  __m256 sum0 = _mm256_setzero_ps(), sum1 = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    sum0 = _mm256_fmadd_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i), sum0);
    sum1 = _mm256_fmadd_ps(_mm256_loadu_ps(x + i + 8), _mm256_loadu_ps(y + i + 8), sum1);
  }
  float lane[16];
  _mm256_storeu_ps(lane, sum0);
  _mm256_storeu_ps(lane + 8, sum1);
  for (int l = 0; i + l < n; ++l) lane[l] = __builtin_fmaf(x[i + l], y[i + l], lane[l]);
  __m256 s8 = _mm256_add_ps(_mm256_loadu_ps(lane), _mm256_loadu_ps(lane + 8));
  __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(s2) + _mm_cvtss_f32(_mm_shuffle_ps(s2, s2, 1));
}

MT_AVX2 void axpy(float a, const float* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 v = _mm256_fmadd_ps(_mm256_set1_ps(a), _mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i));
    _mm256_storeu_ps(y + i, v);
  }
  for (; i < n; ++i) y[i] = __builtin_fmaf(a, x[i], y[i]);
}

MT_AVX2 void add(const float* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(y + i), _mm256_loadu_ps(x + i)));
  for (; i < n; ++i) y[i] = y[i] + x[i];
}

MT_AVX2 void scale_mul(const float* x, const float* gain, float s, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(s));
    _mm256_storeu_ps(y + i, _mm256_mul_ps(v, _mm256_loadu_ps(gain + i)));
  }
  for (; i < n; ++i) y[i] = x[i] * s * gain[i];
}

// max_ps(x, m) is "x > m ? x : m", NaNs and zeros included.
MT_AVX2 float maximum(const float* x, int64_t n) {
  __m256 m0 = _mm256_set1_ps(-std::numeric_limits<float>::infinity()), m1 = m0;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    m0 = _mm256_max_ps(_mm256_loadu_ps(x + i), m0);
    m1 = _mm256_max_ps(_mm256_loadu_ps(x + i + 8), m1);
  }
  float lane[16];
  _mm256_storeu_ps(lane, m0);
  _mm256_storeu_ps(lane + 8, m1);
  for (int l = 0; i + l < n; ++l) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
  __m256 m8 = _mm256_max_ps(_mm256_loadu_ps(lane + 8), _mm256_loadu_ps(lane));
  __m128 m4 = _mm_max_ps(_mm256_extractf128_ps(m8, 1), _mm256_castps256_ps128(m8));
  __m128 m2 = _mm_max_ps(_mm_movehl_ps(m4, m4), m4);
  return _mm_cvtss_f32(_mm_max_ps(_mm_shuffle_ps(m2, m2, 1), m2));
}

MT_AVX2 void rope(float* x, const float* cos_sin, int64_t n_pairs, bool neox) {
  int64_t i = 0;
  if (!neox) {
    for (; i + 4 <= n_pairs; i += 4) {
      __m256 v = _mm256_loadu_ps(x + 2 * i), cs = _mm256_loadu_ps(cos_sin + 2 * i);
      __m256 turned = _mm256_mul_ps(_mm256_permute_ps(v, 0xb1), _mm256_movehdup_ps(cs));
      _mm256_storeu_ps(x + 2 * i, _mm256_fmaddsub_ps(v, _mm256_moveldup_ps(cs), turned));
    }
  } else {
    for (; i + 8 <= n_pairs; i += 8) {
      __m256 cs0 = _mm256_loadu_ps(cos_sin + 2 * i), cs1 = _mm256_loadu_ps(cos_sin + 2 * i + 8);
      __m256 front = _mm256_permute2f128_ps(cs0, cs1, 0x20);
      __m256 back = _mm256_permute2f128_ps(cs0, cs1, 0x31);
      __m256 cos = _mm256_shuffle_ps(front, back, 0x88), sin = _mm256_shuffle_ps(front, back, 0xdd);
      __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + n_pairs + i);
      _mm256_storeu_ps(x + i, _mm256_fmsub_ps(a, cos, _mm256_mul_ps(b, sin)));
      _mm256_storeu_ps(x + n_pairs + i, _mm256_fmadd_ps(b, cos, _mm256_mul_ps(a, sin)));
    }
  }
  for (; i < n_pairs; ++i) {
    float& first = neox ? x[i] : x[2 * i];
    float& second = neox ? x[i + n_pairs] : x[2 * i + 1];
    float a = first, b = second, cos = cos_sin[2 * i], sin = cos_sin[2 * i + 1];
    first = __builtin_fmaf(a, cos, -(b * sin));
    second = __builtin_fmaf(b, cos, a * sin);
  }
}

}  // namespace

const Kernels& avx2_kernels() {
  static const Kernels table = {
      .name = "avx2",
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
      .decode_row = avx2_decode_row,
      .round_pairs = avx2_round_pairs,
      .interleave_pairs = avx2_interleave_pairs,
      .transpose_pairs = transpose_pairs,
      .gemm_pairs = avx2_gemm_pairs,
      .fast_pairs = false,
      .gemm_tiles = nullptr,
      .quantised_bytes = reference_quantised_bytes,
      .quantise = avx2_quantise,
      .has_rows_dot = reference_has_rows_dot,
      .rows_dot = avx2_rows_dot,
  };
  return table;
}

}  // namespace mt
