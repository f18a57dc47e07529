#include <algorithm>
#include <cassert>

#include "kernels/attention.h"
#include "kernels/avx512_attention.h"
#include "kernels/avx512_rows.h"

// Attention over cached strips without scales: F32, F16, BF16.
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

// F32 keys lie position by position.
MT_AVX512F void scores_f32(int64_t heads, int64_t n_strips, int64_t d, const float* q, int64_t ldq,
                           const std::byte* bytes, float* s, int64_t lds) {
  const float* keys = reinterpret_cast<const float*>(bytes);
  for (int64_t j = 0; j < n_strips * kStrip; j += kStrip)
    for (int64_t h = 0; h < heads; ++h) {
      __m512 sum[16];
      MT_UNROLL
      for (int r = 0; r < 16; ++r) sum[r] = _mm512_setzero_ps();
      for (int64_t i = 0; i < d; i += 16) {
        const __mmask16 lanes = first_lanes(d - i);
        const __m512 x = _mm512_maskz_loadu_ps(lanes, q + h * ldq + i);
        MT_UNROLL
        for (int r = 0; r < 16; ++r)
          sum[r] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(lanes, keys + (j + r) * d + i), x, sum[r]);
      }
      _mm512_storeu_ps(s + h * lds + j, sums_of_16(sum));
    }
}

struct F32Row {
  static constexpr int64_t kBytes = 4;
  MT_AVX512F_INLINE __m512 load(const std::byte* at, __mmask16 lanes) {
    return _mm512_maskz_loadu_ps(lanes, at);
  }
};
struct F16Row {
  static constexpr int64_t kBytes = 2;
  MT_AVX512F_INLINE __m512 load(const std::byte* at, __mmask16 lanes) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, at));
  }
  MT_AVX512F_INLINE __m512 load(const std::byte* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
};
struct Bf16Row {
  static constexpr int64_t kBytes = 2;
  MT_AVX512F_INLINE __m512 load(const std::byte* at, __mmask16 lanes) {
    return widened(_mm256_maskz_loadu_epi16(lanes, at));
  }
  MT_AVX512F_INLINE __m512 load(const std::byte* at) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  MT_AVX512F_INLINE __m512 widened(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
};

// Keys channel by channel, sixteen positions side by side: no sums across lanes.
template <class Row, int H>
MT_AVX512F void scores_of(int64_t n_strips, int64_t d, const float* q, int64_t ldq,
                          const std::byte* keys, float* s, int64_t lds) {
  constexpr int kChains = H == 1 ? 4 : H == 2 ? 2 : H < 5 ? 2 : 1;  // an fma takes four cycles
  constexpr int64_t kRow = kStrip * Row::kBytes;
  for (int64_t b = 0; b < n_strips; ++b) {
    __m512 sum[H][kChains];
    MT_UNROLL
    for (int h = 0; h < H; ++h) MT_UNROLL
    for (int c = 0; c < kChains; ++c) sum[h][c] = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + kChains <= d; i += kChains) {
      prefetch(keys + kAhead);
      if (kChains * kRow > 64) prefetch(keys + kAhead + 64);
      MT_UNROLL
      for (int c = 0; c < kChains; ++c) {
        const __m512 x = Row::load(keys + c * kRow);
        MT_UNROLL
        for (int h = 0; h < H; ++h)
          sum[h][c] = _mm512_fmadd_ps(x, _mm512_set1_ps(q[h * ldq + i + c]), sum[h][c]);
      }
      keys += kChains * kRow;
    }
    for (; i < d; ++i) {
      const __m512 x = Row::load(keys);
      MT_UNROLL
      for (int h = 0; h < H; ++h)
        sum[h][0] = _mm512_fmadd_ps(x, _mm512_set1_ps(q[h * ldq + i]), sum[h][0]);
      keys += kRow;
    }
    MT_UNROLL
    for (int h = 0; h < H; ++h) {
      if (kChains == 4) {
        sum[h][0] = _mm512_add_ps(sum[h][0], sum[h][kChains / 2]);
        sum[h][1 % kChains] = _mm512_add_ps(sum[h][1 % kChains], sum[h][kChains - 1]);
      }
      if (kChains > 1) sum[h][0] = _mm512_add_ps(sum[h][0], sum[h][1 % kChains]);
      _mm512_storeu_ps(s + h * lds + b * kStrip, sum[h][0]);
    }
  }
}

template <class Row, int H>
MT_AVX512F void mix_of(int64_t from, int64_t to, int64_t d, const float* p, int64_t ldp,
                       const std::byte* values, float* out, int64_t ldo, bool accumulate) {
  for (int64_t i = 0; i < d; i += 64) {
    Slab512<H> sum;
    load_slab(sum, d - i, out + i, ldo, accumulate);
    for (int64_t j = from; j < to; ++j) {
      const std::byte* row = values + (j * d + i) * Row::kBytes;
      prefetch(row + kAhead);
      prefetch(row + kAhead + 64);
      __m512 v[4];
      MT_UNROLL
      for (int c = 0; c < 4; ++c) v[c] = Row::load(row + 16 * c * Row::kBytes, sum.lanes[c]);
      MT_UNROLL
      for (int h = 0; h < H; ++h) {
        const __m512 share = _mm512_set1_ps(p[h * ldp + j]);
        MT_UNROLL
        for (int c = 0; c < 4; ++c) sum.of[h][c] = _mm512_fmadd_ps(share, v[c], sum.of[h][c]);
      }
    }
    store_slab(sum, out + i, ldo);
  }
}

template <class Row>
struct Plain {
  template <int H>
  static constexpr ScoresOf scores = scores_of<Row, H>;
  template <int H>
  static constexpr MixOf mix = mix_of<Row, H>;
};
struct PlainF32 {
  template <int H>
  static constexpr MixOf mix = mix_of<F32Row, H>;
};

}  // namespace

AttentionKernels avx512f_attention_kernels(Dtype dtype) {
  assert(is_key_type(dtype));
  if (dtype == Dtype::F16) return {scores_by_heads<Plain<F16Row>>, mix_by_heads<Plain<F16Row>>};
  if (dtype == Dtype::BF16) return {scores_by_heads<Plain<Bf16Row>>, mix_by_heads<Plain<Bf16Row>>};
  if (dtype == Dtype::F32) return {scores_f32, mix_by_heads<PlainF32>};
  // Products of bytes need VNNI; without it they go as with AVX2.
  const AttentionKernels bytes = avx512_attention_kernels(dtype);
  return {avx2_attention_kernels(dtype).scores, bytes.mix, bytes.turned_scores};
}

}  // namespace mt
