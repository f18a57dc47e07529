#include <algorithm>

#include "kernels/attention.h"
#include "kernels/attributes.h"
#include "kernels/avx512_rows.h"

namespace mt {
namespace {

// Lane i of the result is the sum of v[i]: sixteen horizontal sums by pairs, quadruples and
// 128-bit quarters.
MT_AVX512F_INLINE __m512 sums_of_16(__m512 (&v)[16]) {
  __m512 s[8], q[4];
  MT_UNROLL
  for (int i = 0; i < 8; ++i)
    s[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                         _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
  MT_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(s[2 * i]), b = _mm512_castps_pd(s[2 * i + 1]);
    q[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const __m512 x =
      _mm512_add_ps(_mm512_shuffle_f32x4(q[0], q[1], 0x88), _mm512_shuffle_f32x4(q[0], q[1], 0xdd));
  const __m512 y =
      _mm512_add_ps(_mm512_shuffle_f32x4(q[2], q[3], 0x88), _mm512_shuffle_f32x4(q[2], q[3], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
}

MT_AVX512F void scores(int64_t heads, int64_t n, int64_t d, const float* q, int64_t ldq,
                       const float* keys, int64_t ldk, float* s, int64_t lds) {
  for (int64_t j = 0; j < n; j += 16) {
    const __mmask16 there = first_lanes(n - j);
    const float* row[16];  // keys that are not there are the first of the sixteen again
    for (int r = 0; r < 16; ++r) row[r] = keys + (j + r < n ? j + r : j) * ldk;
    for (int64_t h = 0; h < heads; ++h) {
      __m512 sum[16];
      MT_UNROLL
      for (int r = 0; r < 16; ++r) sum[r] = _mm512_setzero_ps();
      for (int64_t i = 0; i < d; i += 16) {
        const __mmask16 lanes = first_lanes(d - i);
        const __m512 x = _mm512_maskz_loadu_ps(lanes, q + h * ldq + i);
        MT_UNROLL
        for (int r = 0; r < 16; ++r)
          sum[r] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(lanes, row[r] + i), x, sum[r]);
      }
      _mm512_mask_storeu_ps(s + h * lds + j, there, sums_of_16(sum));
    }
  }
}

template <int H>
MT_AVX512F void mix_heads(int64_t n, int64_t d, const float* p, int64_t ldp, const float* values,
                          int64_t ldv, float* out, int64_t ldo) {
  for (int64_t i = 0; i < d; i += 64) {
    __mmask16 lanes[4];
    __m512 sum[H][4];
    MT_UNROLL
    for (int c = 0; c < 4; ++c) {
      lanes[c] = first_lanes(d - i - 16 * c);
      MT_UNROLL
      for (int h = 0; h < H; ++h) sum[h][c] = _mm512_setzero_ps();
    }
    for (int64_t j = 0; j < n; ++j) {
      __m512 v[4];
      MT_UNROLL
      for (int c = 0; c < 4; ++c)
        v[c] = _mm512_maskz_loadu_ps(lanes[c], values + j * ldv + i + 16 * c);
      MT_UNROLL
      for (int h = 0; h < H; ++h) {
        const __m512 share = _mm512_set1_ps(p[h * ldp + j]);
        MT_UNROLL
        for (int c = 0; c < 4; ++c) sum[h][c] = _mm512_fmadd_ps(share, v[c], sum[h][c]);
      }
    }
    MT_UNROLL
    for (int h = 0; h < H; ++h) MT_UNROLL
    for (int c = 0; c < 4; ++c)
      _mm512_mask_storeu_ps(out + h * ldo + i + 16 * c, lanes[c], sum[h][c]);
  }
}

using MixHeads = void (*)(int64_t, int64_t, const float*, int64_t, const float*, int64_t, float*,
                          int64_t);
constexpr MixHeads mix_heads_of[6] = {nullptr,      mix_heads<1>, mix_heads<2>,
                                      mix_heads<3>, mix_heads<4>, mix_heads<5>};

void mix(int64_t heads, int64_t n, int64_t d, const float* p, int64_t ldp, const float* values,
         int64_t ldv, float* out, int64_t ldo) {
  for (int64_t h = 0; h < heads;) {
    // At most five at once, 20 sums; six are three and three.
    const int64_t left = heads - h, at_once = left > 5 ? (left + 1) / 2 : left;
    const int64_t some = std::min<int64_t>(5, at_once);
    mix_heads_of[some](n, d, p + h * ldp, ldp, values, ldv, out + h * ldo, ldo);
    h += some;
  }
}

}  // namespace

const AttentionKernels& avx512_attention_kernels() {
  static const AttentionKernels table = {.scores = scores, .mix = mix};
  return table;
}

}  // namespace mt
