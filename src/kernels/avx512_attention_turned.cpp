#include <cassert>

#include "kernels/attention.h"
#include "kernels/avx512_attention.h"

// Scores with keys that are rounded by channel before RoPE. Every position of a block has its own
// angle, so sums of codes cannot be shared among positions: all is f32, sixteen positions side by
// side. A code picks its value from the sixteen of its channel (one vpermps, which takes the low
// four bits); a pair of channels is turned by its place in the block once for all heads.
namespace mt {
namespace {

constexpr int64_t kPiece = 128;  // pairs of a query that are held at once

MT_AVX512F_INLINE void store_halves(const std::byte* at, float* y) {
  _mm512_store_ps(y, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))));
}

// Keeps the compiler from loading it again for each of its uses: loads are the bound.
template <class T>
MT_AVX512F_INLINE T in_register(T x) {
  __asm__("" : "+v"(x));
  return x;
}

using TurnedScoresOf = void (*)(int64_t first, int64_t n_blocks, int64_t d, const float* q,
                                int64_t ldq, const std::byte* keys, const KeyTurns& turns, float* s,
                                int64_t lds);

template <int H>
MT_AVX512F void turned_scores_of(int64_t first, int64_t n_blocks, int64_t d, const float* q,
                                 int64_t ldq, const std::byte* keys, const KeyTurns& turns,
                                 float* s, int64_t lds) {
  const int64_t pairs = d / 2, block_bytes = 2 * kv_strip_bytes(Dtype::Q4_1, d);
  const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  alignas(64) float turned[2][H][kPiece], scale[2][kPiece], low[2][kPiece];
  for (int64_t from = 0; from < pairs; from += kPiece) {
    const int64_t n = std::min(kPiece, pairs - from);
    for (int64_t b = 0; b < n_blocks; ++b) {
      const std::byte* block = keys + b * block_bytes;
      for (int64_t at = from * 40; at < (from + n) * 40; at += 64)
        prefetch(block + 2 * block_bytes + at);
      const float* of_block = turns.blocks + (first + b) * d + from;
      for (int64_t i = 0; i < n; i += 16) {
        const __m512 cos = _mm512_loadu_ps(of_block + i);
        const __m512 sin = _mm512_loadu_ps(of_block + pairs + i);
        MT_UNROLL
        for (int y = 0; y < 2; ++y) {
          const int64_t at = y * pairs + from + i;
          store_halves(block + at * 2, scale[y] + i);
          store_halves(block + (d + at) * 2, low[y] + i);
        }
        MT_UNROLL
        for (int h = 0; h < H; ++h) {
          const float* at = q + h * ldq + from + i;
          const __m512 x = _mm512_loadu_ps(at), y = _mm512_loadu_ps(at + pairs);
          _mm512_store_ps(turned[0][h] + i, _mm512_fmadd_ps(x, cos, _mm512_mul_ps(y, sin)));
          _mm512_store_ps(turned[1][h] + i, _mm512_fmsub_ps(y, cos, _mm512_mul_ps(x, sin)));
        }
      }
      __m512 sum[H][2];
      MT_UNROLL
      for (int h = 0; h < H; ++h) sum[h][0] = sum[h][1] = _mm512_setzero_ps();
      for (int64_t i = 0; i < n; i += 8) {
        __m512i word[2][2];
        MT_UNROLL
        for (int y = 0; y < 2; ++y) MT_UNROLL
        for (int half = 0; half < 2; ++half)
          word[y][half] = in_register(
              _mm512_loadu_si512(block + (4 + half * 8) * d + (y * pairs + from + i) * 8));
        const float* lanes = turns.lanes + (from + i) * 2 * kChannelBlock;
        MT_UNROLL
        for (int k = 0; k < 8; ++k) {
          const unsigned shift = static_cast<unsigned>(k < 4 ? 8 * k : 8 * (k - 4) + 4);
          const __m512 x16 = _mm512_fmadd_ps(codes, _mm512_set1_ps(scale[0][i + k]),
                                             _mm512_set1_ps(low[0][i + k]));
          const __m512 y16 = _mm512_fmadd_ps(codes, _mm512_set1_ps(scale[1][i + k]),
                                             _mm512_set1_ps(low[1][i + k]));
          MT_UNROLL
          for (int half = 0; half < 2; ++half) {
            const __m512 x = _mm512_permutexvar_ps(_mm512_srli_epi32(word[0][half], shift), x16);
            const __m512 y = _mm512_permutexvar_ps(_mm512_srli_epi32(word[1][half], shift), y16);
            const float* turn = lanes + k * 2 * kChannelBlock + half * kStrip;
            const __m512 cos = in_register(_mm512_loadu_ps(turn));
            const __m512 sin = in_register(_mm512_loadu_ps(turn + kChannelBlock));
            const __m512 at_x = _mm512_fmsub_ps(x, cos, _mm512_mul_ps(y, sin));
            const __m512 at_y = _mm512_fmadd_ps(x, sin, _mm512_mul_ps(y, cos));
            MT_UNROLL
            for (int h = 0; h < H; ++h) {
              sum[h][half] =
                  _mm512_fmadd_ps(at_x, _mm512_set1_ps(turned[0][h][i + k]), sum[h][half]);
              sum[h][half] =
                  _mm512_fmadd_ps(at_y, _mm512_set1_ps(turned[1][h][i + k]), sum[h][half]);
            }
          }
        }
      }
      MT_UNROLL
      for (int h = 0; h < H; ++h) MT_UNROLL
      for (int half = 0; half < 2; ++half) {
        float* to = s + h * lds + b * kChannelBlock + half * kStrip;
        _mm512_storeu_ps(
            to, from > 0 ? _mm512_add_ps(_mm512_loadu_ps(to), sum[h][half]) : sum[h][half]);
      }
    }
  }
}

}  // namespace

void avx512_turned_scores(int64_t heads, int64_t first, int64_t n_blocks, int64_t d, const float* q,
                          int64_t ldq, const std::byte* keys, const KeyTurns& turns, float* s,
                          int64_t lds) {
  assert(kv_type_fits(Dtype::Q4_1, d));
  static constexpr TurnedScoresOf of[] = {
      turned_scores_of<1>, turned_scores_of<2>, turned_scores_of<3>, turned_scores_of<4>,
      turned_scores_of<5>, turned_scores_of<6>, turned_scores_of<7>, turned_scores_of<8>};
  for (int64_t h = 0; h < heads; h += 8)
    of[std::min<int64_t>(8, heads - h) - 1](first, n_blocks, d, q + h * ldq, ldq, keys, turns,
                                            s + h * lds, lds);
}

}  // namespace mt
