#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/attributes.h"
#include "kernels/avx512_rows.h"
#include "kernels/kv_strips.h"

// What the attention kernels of AVX-512 share.
namespace mt {

// Bytes that a stream is asked for ahead of its use: the processor's own prefetch stops at pages.
inline constexpr int64_t kAhead = 4096;
MT_AVX512F_INLINE void prefetch(const std::byte* at) {
  _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0);
}

MT_AVX512F_INLINE __m512i four_bytes(const int8_t* at) {
  int32_t word;
  __builtin_memcpy(&word, at, 4);
  return _mm512_set1_epi32(word);
}

// Sums of up to 64 channels of H heads.
template <int H>
struct Slab512 {
  __mmask16 lanes[4];
  __m512 of[H][4];
};
template <int H>
MT_AVX512F_INLINE void load_slab(Slab512<H>& sum, int64_t channels, const float* out, int64_t ldo,
                                 bool accumulate) {
  MT_UNROLL
  for (int c = 0; c < 4; ++c) {
    sum.lanes[c] = first_lanes(channels - 16 * c);
    MT_UNROLL
    for (int h = 0; h < H; ++h)
      sum.of[h][c] = accumulate ? _mm512_maskz_loadu_ps(sum.lanes[c], out + h * ldo + 16 * c)
                                : _mm512_setzero_ps();
  }
}
template <int H>
MT_AVX512F_INLINE void store_slab(const Slab512<H>& sum, float* out, int64_t ldo) {
  MT_UNROLL
  for (int h = 0; h < H; ++h) MT_UNROLL
  for (int c = 0; c < 4; ++c)
    _mm512_mask_storeu_ps(out + h * ldo + 16 * c, sum.lanes[c], sum.of[h][c]);
}

using ScoresOf = void (*)(int64_t n_strips, int64_t d, const float* q, int64_t ldq,
                          const std::byte* keys, float* s, int64_t lds);
using MixOf = void (*)(int64_t from, int64_t to, int64_t d, const float* p, int64_t ldp,
                       const std::byte* values, float* out, int64_t ldo, bool accumulate);

// Of keys in Q4_1 (kv_strips.h).
void avx512_scores_by_channel(int64_t heads, int64_t n_strips, int64_t d, const float* q,
                              int64_t ldq, const std::byte* keys, float* s, int64_t lds);

// The same of blocks that were rounded before RoPE, in f32: no VNNI.
void avx512_turned_scores(int64_t heads, int64_t first, int64_t n_blocks, int64_t d, const float* q,
                          int64_t ldq, const std::byte* keys, const KeyTurns& turns, float* s,
                          int64_t lds);

// Heads that go together: their sums have to fit in registers.
inline constexpr int64_t kHeadsAtOnce = 5;
// More are divided evenly: six are three and three.
inline int64_t heads_at_once(int64_t left) {
  return std::min(kHeadsAtOnce, left > kHeadsAtOnce ? (left + 1) / 2 : left);
}

// Of a format that has them for 1 .. 5 heads.
template <class Format>
void scores_by_heads(int64_t heads, int64_t n_strips, int64_t d, const float* q, int64_t ldq,
                     const std::byte* keys, float* s, int64_t lds) {
  static constexpr ScoresOf of[] = {Format::template scores<1>, Format::template scores<2>,
                                    Format::template scores<3>, Format::template scores<4>,
                                    Format::template scores<5>};
  for (int64_t h = 0; h < heads;) {
    const int64_t some = heads_at_once(heads - h);
    of[some - 1](n_strips, d, q + h * ldq, ldq, keys, s + h * lds, lds);
    h += some;
  }
}
template <class Format>
void mix_by_heads(int64_t heads, int64_t from, int64_t to, int64_t d, const float* p, int64_t ldp,
                  const std::byte* values, float* out, int64_t ldo, bool accumulate) {
  static constexpr MixOf of[] = {Format::template mix<1>, Format::template mix<2>,
                                 Format::template mix<3>, Format::template mix<4>,
                                 Format::template mix<5>};
  for (int64_t h = 0; h < heads;) {
    const int64_t some = heads_at_once(heads - h);
    of[some - 1](from, to, d, p + h * ldp, ldp, values, out + h * ldo, ldo, accumulate);
    h += some;
  }
}

}  // namespace mt
