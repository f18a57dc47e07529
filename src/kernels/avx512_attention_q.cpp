#include <bit>
#include <cassert>
#include <cmath>

#include "kernels/attention.h"
#include "kernels/avx512_attention.h"

// Attention over cached strips of Q8_0 and Q4_0. Scores are products of bytes: a query is taken as
// 254 * high + low, two signed bytes with one scale per 32 channels, so that its own rounding
// (2^-16 of the largest) does not count beside that of the keys. Values are mixed in f32.
namespace mt {
namespace {

constexpr int64_t kPiece = 256;  // channels of a query that are held in bytes at once
constexpr float kBase = 254.0f;

template <int H>
struct ByteQuery {
  alignas(64) int8_t high[H][kPiece], low[H][kPiece];
  // Codes are stored with an offset: what that adds, by blocks.
  int32_t high_offset[H][kPiece / kKvBlock], low_offset[H][kPiece / kKvBlock];
  float scale[H][kPiece / kKvBlock];

  MT_AVX512F void fill(const float* q, int64_t ldq, int64_t n, int32_t offset) {
    constexpr float kMost = 127.0f * kBase + 126.0f;  // one more would round up to 128 * base
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    const __m512 base = _mm512_set1_ps(kBase);
    for (int h = 0; h < H; ++h)
      for (int64_t b = 0; b < n / kKvBlock; ++b) {
        const __m512 x[2] = {_mm512_loadu_ps(q + h * ldq + b * kKvBlock),
                             _mm512_loadu_ps(q + h * ldq + b * kKvBlock + 16)};
        // As integers: NaN is above infinity, infinity above all numbers.
        const int32_t bits = _mm512_reduce_max_epi32(_mm512_max_epi32(
            _mm512_castps_si512(_mm512_abs_ps(x[0])), _mm512_castps_si512(_mm512_abs_ps(x[1]))));
        const bool finite = bits < 0x7f800000;
        const float largest = std::bit_cast<float>(bits);
        const bool usable = finite && largest > 1e-30f;
        scale[h][b] = finite ? (usable ? largest / kMost : 0.0f) : std::nanf("");
        const __m512 inverse = _mm512_set1_ps(usable ? kMost / largest : 0.0f);
        __m512i high_sum = _mm512_setzero_si512(), low_sum = high_sum;
        for (int half = 0; half < 2; ++half) {
          const __mmask16 lanes = usable ? 0xffff : 0;  // zero times infinity would be no number
          const __m512 y =
              _mm512_roundscale_ps(_mm512_maskz_mul_ps(lanes, x[half], inverse), kNearest);
          const __m512 part =
              _mm512_roundscale_ps(_mm512_mul_ps(y, _mm512_set1_ps(1.0f / kBase)), kNearest);
          const __m512i a = _mm512_cvtps_epi32(part);
          const __m512i c = _mm512_cvtps_epi32(_mm512_fnmadd_ps(part, base, y));
          const int64_t at = b * kKvBlock + half * 16;
          _mm_store_si128(reinterpret_cast<__m128i*>(high[h] + at), _mm512_cvtepi32_epi8(a));
          _mm_store_si128(reinterpret_cast<__m128i*>(low[h] + at), _mm512_cvtepi32_epi8(c));
          high_sum = _mm512_add_epi32(high_sum, a);
          low_sum = _mm512_add_epi32(low_sum, c);
        }
        high_offset[h][b] = -offset * _mm512_reduce_add_epi32(high_sum);
        low_offset[h][b] = -offset * _mm512_reduce_add_epi32(low_sum);
      }
  }
};

MT_AVX512F_INLINE __m512 scales_of(const std::byte* strip, int64_t block) {
  return _mm512_cvtph_ps(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(strip + block * kStrip * 2)));
}

template <bool kBytes, int H>
MT_AVX512 void scores_of(int64_t n_strips, int64_t d, const float* q, int64_t ldq,
                         const std::byte* keys, float* s, int64_t lds) {
  const int64_t strip_bytes = kv_strip_bytes(kBytes ? Dtype::Q8_0 : Dtype::Q4_0, d);
  const __m512i fifteen = _mm512_set1_epi8(15);
  const __m512 base = _mm512_set1_ps(kBase);
  for (int64_t c = 0; c < d; c += kPiece) {
    const int64_t n = std::min(kPiece, d - c);
    ByteQuery<H> query;
    query.fill(q + c, ldq, n, kBytes ? 128 : 8);
    for (int64_t b = 0; b < n_strips; ++b) {
      const std::byte* strip = keys + b * strip_bytes;
      const std::byte* codes =
          strip + d / kKvBlock * kStrip * 2 + (kBytes ? c * kStrip : c * kStrip / 2);
      for (int64_t at = 0; at < (kBytes ? n * 17 : n * 9); at += 64)
        prefetch(codes + at + strip_bytes);
      __m512 total[H];
      MT_UNROLL
      for (int h = 0; h < H; ++h)
        total[h] = c > 0 ? _mm512_loadu_ps(s + h * lds + b * kStrip) : _mm512_setzero_ps();
      for (int64_t k = 0; k < n / kKvBlock; ++k) {
        __m512i high[H], low[H];
        MT_UNROLL
        for (int h = 0; h < H; ++h) {
          high[h] = _mm512_set1_epi32(query.high_offset[h][k]);
          low[h] = _mm512_set1_epi32(query.low_offset[h][k]);
        }
        MT_UNROLL
        for (int g = 0; g < 8; ++g) {
          __m512i x;
          if (kBytes) {
            x = _mm512_loadu_si512(codes + (k * 8 + g) * 64);
          } else {
            x = _mm512_loadu_si512(codes + (k * 4 + g / 2) * 64);
            x = _mm512_and_si512(g % 2 ? _mm512_srli_epi16(x, 4) : x, fifteen);
          }
          MT_UNROLL
          for (int h = 0; h < H; ++h) {
            high[h] =
                _mm512_dpbusd_epi32(high[h], x, four_bytes(query.high[h] + k * kKvBlock + g * 4));
            low[h] =
                _mm512_dpbusd_epi32(low[h], x, four_bytes(query.low[h] + k * kKvBlock + g * 4));
          }
        }
        const __m512 scale = scales_of(strip, c / kKvBlock + k);
        MT_UNROLL
        for (int h = 0; h < H; ++h) {
          const __m512 sum =
              _mm512_fmadd_ps(_mm512_cvtepi32_ps(high[h]), base, _mm512_cvtepi32_ps(low[h]));
          total[h] = _mm512_fmadd_ps(sum, _mm512_mul_ps(scale, _mm512_set1_ps(query.scale[h][k])),
                                     total[h]);
        }
      }
      MT_UNROLL
      for (int h = 0; h < H; ++h) _mm512_storeu_ps(s + h * lds + b * kStrip, total[h]);
    }
  }
}

// 64 channels of a row from channel i; those past its end are not read.
struct Q8Row {
  static constexpr Dtype kType = Dtype::Q8_0;
  MT_AVX512F_INLINE void load(const std::byte* rows, int64_t j, int64_t d, int64_t i, bool both,
                              __m512 (&v)[4]) {
    MT_UNROLL
    for (int c = 0; c < 4; ++c) {
      if (c >= 2 && !both) {
        v[c] = _mm512_setzero_ps();
        continue;
      }
      const auto* at = reinterpret_cast<const __m128i*>(rows + j * d + i + 16 * c);
      v[c] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at)));
    }
  }
};
struct Q4Row {
  static constexpr Dtype kType = Dtype::Q4_0;
  MT_AVX512F_INLINE void load(const std::byte* rows, int64_t j, int64_t d, int64_t i, bool both,
                              __m512 (&v)[4]) {
    // The permutation looks at the four lowest bits of its index only.
    const __m512 value = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    MT_UNROLL
    for (int c = 0; c < 4; c += 2) {
      if (c >= 2 && !both) {
        v[c] = v[c + 1] = _mm512_setzero_ps();
        continue;
      }
      const auto* at = reinterpret_cast<const __m128i*>(rows + (j * d + i) / 2 + 8 * c);
      const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(at));
      v[c] = _mm512_permutexvar_ps(codes, value);
      v[c + 1] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), value);
    }
  }
};

template <class Row, int H>
MT_AVX512F void mix_of(int64_t from, int64_t to, int64_t d, const float* p, int64_t ldp,
                       const std::byte* values, float* out, int64_t ldo, bool accumulate) {
  const int64_t strip_bytes = kv_strip_bytes(Row::kType, d);
  const int64_t row_bytes = Row::kType == Dtype::Q8_0 ? d : d / 2;
  for (int64_t i = 0; i < d; i += 64) {
    const bool both = d - i >= 64;  // blocks
    Slab512<H> sum;
    load_slab(sum, d - i, out + i, ldo, accumulate);
    for (int64_t j = from; j < to;) {
      const int64_t b = j / kStrip, end = std::min((b + 1) * kStrip, to);
      const std::byte* strip = values + b * strip_bytes;
      const std::byte* rows = strip + d / kKvBlock * kStrip * 2;
      // Probability times scale, by blocks.
      alignas(64) float share[H][2][kStrip];
      const __m512 first = scales_of(strip, i / kKvBlock);
      const __m512 second = both ? scales_of(strip, i / kKvBlock + 1) : first;
      MT_UNROLL
      for (int h = 0; h < H; ++h) {
        const __m512 x = _mm512_loadu_ps(p + h * ldp + b * kStrip);
        _mm512_store_ps(share[h][0], _mm512_mul_ps(x, first));
        _mm512_store_ps(share[h][1], _mm512_mul_ps(x, second));
      }
      for (; j < end; ++j) {
        const int64_t lane = j - b * kStrip;
        prefetch(rows + lane * row_bytes + i + strip_bytes);
        __m512 v[4];
        Row::load(rows, lane, d, i, both, v);
        MT_UNROLL
        for (int h = 0; h < H; ++h) {
          const __m512 low = _mm512_set1_ps(share[h][0][lane]);
          const __m512 high = _mm512_set1_ps(share[h][1][lane]);
          sum.of[h][0] = _mm512_fmadd_ps(low, v[0], sum.of[h][0]);
          sum.of[h][1] = _mm512_fmadd_ps(low, v[1], sum.of[h][1]);
          sum.of[h][2] = _mm512_fmadd_ps(high, v[2], sum.of[h][2]);
          sum.of[h][3] = _mm512_fmadd_ps(high, v[3], sum.of[h][3]);
        }
      }
    }
    store_slab(sum, out + i, ldo);
  }
}

template <class Row>
struct Scaled {
  template <int H>
  static constexpr ScoresOf scores = scores_of<Row::kType == Dtype::Q8_0, H>;
  template <int H>
  static constexpr MixOf mix = mix_of<Row, H>;
};

}  // namespace

AttentionKernels avx512_attention_kernels(Dtype dtype) {
  assert(is_key_type(dtype));
  if (by_channel(dtype)) return {avx512_scores_by_channel, nullptr, avx512_turned_scores};
  if (dtype == Dtype::Q8_0) return {scores_by_heads<Scaled<Q8Row>>, mix_by_heads<Scaled<Q8Row>>};
  if (dtype == Dtype::Q4_0) return {scores_by_heads<Scaled<Q4Row>>, mix_by_heads<Scaled<Q4Row>>};
  return avx512f_attention_kernels(dtype);
}

}  // namespace mt
