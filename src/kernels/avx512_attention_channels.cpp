#include <bit>
#include <cassert>
#include <cmath>

#include "kernels/attention.h"
#include "kernels/avx512_attention.h"

// Scores with keys that are rounded by channel. With key = minimum + scale * code of a channel, a
// query's score is sum q * minimum, one number for the 32 positions of a block, and the product of
// q * scale with the codes. q * scale is rounded anew for every block, to two signed bytes,
// 256 * high + low, with one scale for all channels: 2^-16 of the largest, which does not count
// beside the keys' own half step of each channel.
namespace mt {
namespace {

constexpr int64_t kPiece = 256;  // channels of a query that are held in bytes at once

MT_AVX512F_INLINE __m512 halves(const std::byte* at) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}

template <int H>
struct BlockQuery {
  alignas(64) int8_t high[H][kPiece], low[H][kPiece];
  alignas(64) float scaled[H][kPiece];
  float scale[H], constant[H];

  // n channels, a multiple of 32; scales, minima: of the block, in f16.
  MT_AVX512F void fill(const float* q, int64_t ldq, int64_t n, const std::byte* scales,
                       const std::byte* minima) {
    constexpr float kMost = 127.0f * 256.0f + 127.0f;
    __m512i largest[H];
    __m512 sum[H];
    MT_UNROLL
    for (int h = 0; h < H; ++h) {
      largest[h] = _mm512_setzero_si512();
      sum[h] = _mm512_setzero_ps();
    }
    for (int64_t i = 0; i < n; i += 16) {
      const __m512 step = halves(scales + i * 2), minimum = halves(minima + i * 2);
      MT_UNROLL
      for (int h = 0; h < H; ++h) {
        const __m512 x = _mm512_loadu_ps(q + h * ldq + i), y = _mm512_mul_ps(x, step);
        _mm512_store_ps(scaled[h] + i, y);
        // As integers: NaN is above infinity, infinity above all numbers.
        largest[h] = _mm512_max_epi32(largest[h], _mm512_castps_si512(_mm512_abs_ps(y)));
        sum[h] = _mm512_fmadd_ps(x, minimum, sum[h]);
      }
    }
    MT_UNROLL
    for (int h = 0; h < H; ++h) {
      const int32_t bits = _mm512_reduce_max_epi32(largest[h]);
      const bool finite = bits < 0x7f800000;
      const float most = std::bit_cast<float>(bits);
      const bool usable = finite && most > 1e-30f;
      scale[h] = finite ? (usable ? most / kMost : 0.0f) : std::nanf("");
      constant[h] = _mm512_reduce_add_ps(sum[h]);
      const __m512 inverse = _mm512_set1_ps(usable ? kMost / most : 0.0f);
      for (int64_t i = 0; i < n; i += 16) {
        const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(scaled[h] + i), inverse));
        // The low byte is what 256 * high leaves, -128 .. 127.
        const __m512i up = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
        _mm_store_si128(reinterpret_cast<__m128i*>(high[h] + i), _mm512_cvtepi32_epi8(up));
        _mm_store_si128(reinterpret_cast<__m128i*>(low[h] + i), _mm512_cvtepi32_epi8(v));
      }
    }
  }
};

template <int H>
MT_AVX512 void scores_of(int64_t n_strips, int64_t d, const float* q, int64_t ldq,
                         const std::byte* keys, float* s, int64_t lds) {
  const int64_t block_bytes = 2 * kv_strip_bytes(Dtype::Q4_1, d);
  const __m512i fifteen = _mm512_set1_epi8(15);
  BlockQuery<H> query;
  for (int64_t c = 0; c < d; c += kPiece) {
    const int64_t n = std::min(kPiece, d - c);
    for (int64_t b = 0; b < n_strips / 2; ++b) {
      const std::byte* block = keys + b * block_bytes;
      for (int64_t at = c * 20; at < (c + n) * 20; at += 64) prefetch(block + block_bytes + at);
      query.fill(q + c, ldq, n, block + c * 2, block + (d + c) * 2);
      const std::byte* codes[2] = {block + 4 * d + c * 8, block + 12 * d + c * 8};
      __m512i high[H][2], low[H][2];
      MT_UNROLL
      for (int h = 0; h < H; ++h) MT_UNROLL
      for (int j = 0; j < 2; ++j) high[h][j] = low[h][j] = _mm512_setzero_si512();
      for (int64_t i = 0; i < n; i += 8) {
        __m512i x[2];
        MT_UNROLL
        for (int j = 0; j < 2; ++j) x[j] = _mm512_loadu_si512(codes[j] + i * 8);
        MT_UNROLL
        for (int part = 0; part < 2; ++part) {
          MT_UNROLL
          for (int h = 0; h < H; ++h) {
            const __m512i up = four_bytes(query.high[h] + i + part * 4);
            const __m512i down = four_bytes(query.low[h] + i + part * 4);
            MT_UNROLL
            for (int j = 0; j < 2; ++j) {
              const __m512i code =
                  _mm512_and_si512(part ? _mm512_srli_epi16(x[j], 4) : x[j], fifteen);
              high[h][j] = _mm512_dpbusd_epi32(high[h][j], code, up);
              low[h][j] = _mm512_dpbusd_epi32(low[h][j], code, down);
            }
          }
        }
      }
      // Whole numbers below 2^27: 256 channels of 15 * 2^15.
      MT_UNROLL
      for (int h = 0; h < H; ++h) MT_UNROLL
      for (int j = 0; j < 2; ++j) {
        float* to = s + h * lds + (2 * b + j) * kStrip;
        const __m512 sum =
            _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high[h][j], 8), low[h][j]));
        const __m512 total =
            _mm512_fmadd_ps(sum, _mm512_set1_ps(query.scale[h]), _mm512_set1_ps(query.constant[h]));
        _mm512_storeu_ps(to, c > 0 ? _mm512_add_ps(_mm512_loadu_ps(to), total) : total);
      }
    }
  }
}

struct ByChannel {
  template <int H>
  static constexpr ScoresOf scores = scores_of<H>;
};

}  // namespace

void avx512_scores_by_channel(int64_t heads, int64_t n_strips, int64_t d, const float* q,
                              int64_t ldq, const std::byte* keys, float* s, int64_t lds) {
  assert(n_strips % 2 == 0 && kv_type_fits(Dtype::Q4_1, d));
  scores_by_heads<ByChannel>(heads, n_strips, d, q, ldq, keys, s, lds);
}

}  // namespace mt
