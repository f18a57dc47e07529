#include <algorithm>
#include <cassert>
#include <vector>

#include "dtype/half.h"
#include "kernels/attention.h"
#include "kernels/avx2_rows.h"

// Attention over cached strips with AVX2: every format in f32. Sixteen positions are two registers.
namespace mt {
namespace {

MT_AVX2_INLINE __m128i load_16(const std::byte* at) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
}
MT_AVX2_INLINE __m256 half_8(const std::byte* at) {
  return _mm256_cvtph_ps(load_16(at));
}
MT_AVX2_INLINE __m256 bf16_8(const std::byte* at) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16(at)), 16));
}

// Positions 8 half .. 8 half + 7 of one strip, of up to four heads.
template <Dtype T, int H>
MT_AVX2 void scores_of_half(int64_t d, const float* q, int64_t ldq, const std::byte* strip,
                            int64_t half, float* s, int64_t lds) {
  __m256 sum[H];
  MT_UNROLL
  for (int h = 0; h < H; ++h) sum[h] = _mm256_setzero_ps();
  auto add = [&](__m256 x, int64_t i) __attribute__((target("avx2,fma,f16c"), always_inline)) {
    MT_UNROLL
    for (int h = 0; h < H; ++h)
      sum[h] = _mm256_fmadd_ps(x, _mm256_broadcast_ss(q + h * ldq + i), sum[h]);
  };
  if constexpr (T == Dtype::F16 || T == Dtype::BF16) {
    for (int64_t i = 0; i < d; ++i) {
      const std::byte* at = strip + i * kStrip * 2 + half * 16;
      add(T == Dtype::F16 ? half_8(at) : bf16_8(at), i);
    }
  } else {
    constexpr int kWords = T == Dtype::Q8_0 ? 8 : 4;  // of a block
    const std::byte* codes = strip + d / kKvBlock * kStrip * 2 + half * 32;
    const __m256i mask = _mm256_set1_epi32(T == Dtype::Q8_0 ? 255 : 15);
    const __m256i zero = _mm256_set1_epi32(T == Dtype::Q8_0 ? 128 : 8);
    for (int64_t b = 0; b * kKvBlock < d; ++b) {
      const __m256 scale = half_8(strip + b * kStrip * 2 + half * 16);
      for (int64_t g = 0; g < kWords; ++g) {
        __m256i word = _mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(codes + (b * kWords + g) * kStrip * 4));
        const int64_t first = b * kKvBlock + g * (kKvBlock / kWords);
        for (int64_t i = 0; i < kKvBlock / kWords; ++i) {
          // Of Q4_0 the low halves of the four bytes come first, then the high ones.
          const int shift = static_cast<int>(T == Dtype::Q8_0 ? 8 * i
                                             : i < 4          ? 8 * i
                                                              : 8 * (i - 4) + 4);
          const __m256i code = _mm256_and_si256(_mm256_srli_epi32(word, shift), mask);
          add(_mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_sub_epi32(code, zero))), first + i);
        }
      }
    }
  }
  MT_UNROLL
  for (int h = 0; h < H; ++h) _mm256_storeu_ps(s + h * lds + half * 8, sum[h]);
}

template <Dtype T>
MT_AVX2 void scores(int64_t heads, int64_t n_strips, int64_t d, const float* q, int64_t ldq,
                    const std::byte* keys, float* s, int64_t lds) {
  constexpr auto one = scores_of_half<T, 1>, two = scores_of_half<T, 2>,
                 three = scores_of_half<T, 3>, four = scores_of_half<T, 4>;
  for (int64_t b = 0; b < n_strips; ++b) {
    const std::byte* strip = keys + b * kv_strip_bytes(T, d);
    for (int64_t h = 0; h < heads; h += 4) {
      const auto some = heads - h >= 4 ? four : heads - h == 3 ? three : heads - h == 2 ? two : one;
      for (int64_t half = 0; half < 2; ++half)
        some(d, q + h * ldq, ldq, strip, half, s + h * lds + b * kStrip, lds);
    }
  }
}

// Positions 8 part .. 8 part + 7 of a block by channel, of up to four heads.
template <int H>
MT_AVX2 void scores_of_part(int64_t d, const float* q, int64_t ldq, const std::byte* block,
                            int64_t part, float* s, int64_t lds) {
  const std::byte* codes = block + (4 + part / 2 * 8) * d + part % 2 * 32;
  const __m256i fifteen = _mm256_set1_epi32(15);
  __m256 sum[H];
  MT_UNROLL
  for (int h = 0; h < H; ++h) sum[h] = _mm256_setzero_ps();
  for (int64_t i = 0; i < d; i += 8) {
    alignas(32) float scale[8], low[8];
    _mm256_store_ps(scale, half_8(block + i * 2));
    _mm256_store_ps(low, half_8(block + (d + i) * 2));
    const __m256i word =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i / 8 * kStrip * 4));
    MT_UNROLL
    for (int c = 0; c < 8; ++c) {
      const __m256i code =
          _mm256_and_si256(_mm256_srli_epi32(word, c < 4 ? 8 * c : 8 * (c - 4) + 4), fifteen);
      const __m256 x = _mm256_fmadd_ps(_mm256_broadcast_ss(scale + c), _mm256_cvtepi32_ps(code),
                                       _mm256_broadcast_ss(low + c));
      MT_UNROLL
      for (int h = 0; h < H; ++h)
        sum[h] = _mm256_fmadd_ps(x, _mm256_broadcast_ss(q + h * ldq + i + c), sum[h]);
    }
  }
  MT_UNROLL
  for (int h = 0; h < H; ++h) _mm256_storeu_ps(s + h * lds + part * 8, sum[h]);
}

MT_AVX2 void scores_by_channel(int64_t heads, int64_t n_strips, int64_t d, const float* q,
                               int64_t ldq, const std::byte* keys, float* s, int64_t lds) {
  constexpr auto one = scores_of_part<1>, two = scores_of_part<2>, three = scores_of_part<3>,
                 four = scores_of_part<4>;
  for (int64_t b = 0; b < n_strips; b += 2)
    for (int64_t h = 0; h < heads; h += 4) {
      const auto some = heads - h >= 4 ? four : heads - h == 3 ? three : heads - h == 2 ? two : one;
      for (int64_t part = 0; part < 4; ++part)
        some(d, q + h * ldq, ldq, keys + b * kv_strip_bytes(Dtype::Q4_1, d), part,
             s + h * lds + b * kStrip, lds);
    }
}

// The same of a block that was rounded before RoPE. q: by places, turned back by the block's
// position.
template <int H>
MT_AVX2 void turned_scores_of_part(int64_t d, const float* q, const std::byte* block,
                                   const float* lanes, int64_t part, float* s, int64_t lds) {
  const int64_t pairs = d / 2;
  const std::byte* codes = block + (4 + part / 2 * 8) * d + part % 2 * 32;
  const __m256i fifteen = _mm256_set1_epi32(15);
  __m256 sum[H];
  MT_UNROLL
  for (int h = 0; h < H; ++h) sum[h] = _mm256_setzero_ps();
  for (int64_t i = 0; i < pairs; i += 8) {
    alignas(32) float scale[2][8], low[2][8];
    __m256i word[2];
    MT_UNROLL
    for (int y = 0; y < 2; ++y) {
      const int64_t at = i + y * pairs;
      _mm256_store_ps(scale[y], half_8(block + at * 2));
      _mm256_store_ps(low[y], half_8(block + (d + at) * 2));
      word[y] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + at / 8 * kStrip * 4));
    }
    MT_UNROLL
    for (int c = 0; c < 8; ++c) {
      __m256 key[2];
      MT_UNROLL
      for (int y = 0; y < 2; ++y) {
        const __m256i code =
            _mm256_and_si256(_mm256_srli_epi32(word[y], c < 4 ? 8 * c : 8 * (c - 4) + 4), fifteen);
        key[y] = _mm256_fmadd_ps(_mm256_broadcast_ss(scale[y] + c), _mm256_cvtepi32_ps(code),
                                 _mm256_broadcast_ss(low[y] + c));
      }
      const float* turn = lanes + (i + c) * 2 * kChannelBlock + part * 8;
      const __m256 cos = _mm256_loadu_ps(turn), sin = _mm256_loadu_ps(turn + kChannelBlock);
      const __m256 x = _mm256_fmsub_ps(key[0], cos, _mm256_mul_ps(key[1], sin));
      const __m256 y = _mm256_fmadd_ps(key[0], sin, _mm256_mul_ps(key[1], cos));
      MT_UNROLL
      for (int h = 0; h < H; ++h) {
        sum[h] = _mm256_fmadd_ps(x, _mm256_broadcast_ss(q + h * d + i + c), sum[h]);
        sum[h] = _mm256_fmadd_ps(y, _mm256_broadcast_ss(q + h * d + pairs + i + c), sum[h]);
      }
    }
  }
  MT_UNROLL
  for (int h = 0; h < H; ++h) _mm256_storeu_ps(s + h * lds + part * 8, sum[h]);
}

MT_AVX2 void turned_scores(int64_t heads, int64_t first, int64_t n_blocks, int64_t d,
                           const float* q, int64_t ldq, const std::byte* keys,
                           const KeyTurns& turns, float* s, int64_t lds) {
  constexpr auto one = turned_scores_of_part<1>, two = turned_scores_of_part<2>,
                 three = turned_scores_of_part<3>, four = turned_scores_of_part<4>;
  const int64_t pairs = d / 2;
  thread_local std::vector<float> turned;  // no allocation for every token
  turned.resize(static_cast<size_t>(heads * d));
  for (int64_t b = 0; b < n_blocks; ++b) {
    const float* cos = turns.blocks + (first + b) * d;
    const float* sin = cos + pairs;
    for (int64_t h = 0; h < heads; ++h) {
      const float* x = q + h * ldq;
      float* to = turned.data() + h * d;
      for (int64_t i = 0; i < pairs; ++i) {
        to[i] = x[i] * cos[i] + x[pairs + i] * sin[i];
        to[pairs + i] = x[pairs + i] * cos[i] - x[i] * sin[i];
      }
    }
    for (int64_t h = 0; h < heads; h += 4) {
      const auto some = heads - h >= 4 ? four : heads - h == 3 ? three : heads - h == 2 ? two : one;
      for (int64_t part = 0; part < 4; ++part)
        some(d, turned.data() + h * d, keys + b * 2 * kv_strip_bytes(Dtype::Q4_1, d), turns.lanes,
             part, s + h * lds + b * kChannelBlock, lds);
    }
  }
}

MT_AVX2_INLINE float sum_of(__m256 x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

// F32 keys lie position by position.
MT_AVX2 void scores_f32(int64_t heads, int64_t n_strips, int64_t d, const float* q, int64_t ldq,
                        const std::byte* bytes, float* s, int64_t lds) {
  const float* keys = reinterpret_cast<const float*>(bytes);
  for (int64_t j = 0; j < n_strips * kStrip; j += 4)
    for (int64_t h = 0; h < heads; ++h) {
      __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                       _mm256_setzero_ps()};
      for (int64_t i = 0; i < d; i += 8) {
        const __m256i lanes = first_lanes(d - i);
        const __m256 x = _mm256_maskload_ps(q + h * ldq + i, lanes);
        MT_UNROLL
        for (int r = 0; r < 4; ++r)
          sum[r] = _mm256_fmadd_ps(_mm256_maskload_ps(keys + (j + r) * d + i, lanes), x, sum[r]);
      }
      for (int r = 0; r < 4; ++r) s[h * lds + j + r] = sum_of(sum[r]);
    }
}

// Channels 8c .. 8c + 7 of slab i (16 of them), of up to four heads; full ones only.
template <Dtype T, int H>
MT_AVX2 void mix_of(int64_t from, int64_t to, int64_t d, int64_t i, const float* p, int64_t ldp,
                    const std::byte* values, float* out, int64_t ldo, bool accumulate) {
  __m256 sum[H][2];
  MT_UNROLL
  for (int h = 0; h < H; ++h) MT_UNROLL
  for (int c = 0; c < 2; ++c)
    sum[h][c] = accumulate ? _mm256_loadu_ps(out + h * ldo + i + 8 * c) : _mm256_setzero_ps();
  const int64_t strip_bytes = kv_strip_bytes(T, d), scales = d / kKvBlock * kStrip * 2;
  for (int64_t j = from; j < to; ++j) {
    __m256 v[2];
    if constexpr (has_kv_scales(T)) {
      const std::byte* strip = values + j / kStrip * strip_bytes;
      const int64_t lane = j % kStrip;
      uint16_t bits;
      __builtin_memcpy(&bits, strip + (i / kKvBlock * kStrip + lane) * 2, 2);
      const __m256 scale = _mm256_set1_ps(_cvtsh_ss(bits));
      __m128i codes;
      if constexpr (T == Dtype::Q8_0) {
        codes = load_16(strip + scales + lane * d + i);
      } else {
        codes = load_16(strip + scales + lane * d / 2 + i / kKvBlock * 16);
        codes = _mm_and_si128(i % kKvBlock ? _mm_srli_epi16(codes, 4) : codes, _mm_set1_epi8(15));
        codes = _mm_sub_epi8(codes, _mm_set1_epi8(8));
      }
      v[0] = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
      v[1] = _mm256_mul_ps(
          scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(codes, codes))));
    } else {
      constexpr int64_t kBytes = T == Dtype::F32 ? 4 : 2;
      const std::byte* at = values + (j * d + i) * kBytes;
      MT_UNROLL
      for (int c = 0; c < 2; ++c) {
        if constexpr (T == Dtype::F32)
          v[c] = _mm256_loadu_ps(reinterpret_cast<const float*>(at) + 8 * c);
        else
          v[c] = T == Dtype::F16 ? half_8(at + 16 * c) : bf16_8(at + 16 * c);
      }
    }
    MT_UNROLL
    for (int h = 0; h < H; ++h) {
      const __m256 share = _mm256_broadcast_ss(p + h * ldp + j);
      MT_UNROLL
      for (int c = 0; c < 2; ++c) sum[h][c] = _mm256_fmadd_ps(share, v[c], sum[h][c]);
    }
  }
  MT_UNROLL
  for (int h = 0; h < H; ++h) MT_UNROLL
  for (int c = 0; c < 2; ++c) _mm256_storeu_ps(out + h * ldo + i + 8 * c, sum[h][c]);
}

template <Dtype T>
MT_AVX2 void mix(int64_t heads, int64_t from, int64_t to, int64_t d, const float* p, int64_t ldp,
                 const std::byte* values, float* out, int64_t ldo, bool accumulate) {
  constexpr auto one = mix_of<T, 1>, two = mix_of<T, 2>, three = mix_of<T, 3>, four = mix_of<T, 4>;
  const int64_t whole = d / kStrip * kStrip;
  for (int64_t h = 0; h < heads; h += 4) {
    const auto some = heads - h >= 4 ? four : heads - h == 3 ? three : heads - h == 2 ? two : one;
    for (int64_t i = 0; i < whole; i += 16)
      some(from, to, d, i, p + h * ldp, ldp, values, out + h * ldo, ldo, accumulate);
  }
  if constexpr (!has_kv_scales(T))  // the last channels, where heads are no multiple of 16
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = whole; i < d; ++i) {
        float sum = accumulate ? out[h * ldo + i] : 0.0f;
        for (int64_t j = from; j < to; ++j) {
          float v;
          if constexpr (T == Dtype::F32) {
            __builtin_memcpy(&v, values + (j * d + i) * 4, 4);
          } else {
            uint16_t bits;
            __builtin_memcpy(&bits, values + (j * d + i) * 2, 2);
            v = T == Dtype::F16 ? half_value(bits) : bf16_value(bits);
          }
          sum += p[h * ldp + j] * v;
        }
        out[h * ldo + i] = sum;
      }
}

}  // namespace

AttentionKernels avx2_attention_kernels(Dtype dtype) {
  assert(is_key_type(dtype));
  if (by_channel(dtype)) return {scores_by_channel, nullptr, turned_scores};
  if (dtype == Dtype::F16) return {scores<Dtype::F16>, mix<Dtype::F16>};
  if (dtype == Dtype::BF16) return {scores<Dtype::BF16>, mix<Dtype::BF16>};
  if (dtype == Dtype::Q8_0) return {scores<Dtype::Q8_0>, mix<Dtype::Q8_0>};
  if (dtype == Dtype::Q4_0) return {scores<Dtype::Q4_0>, mix<Dtype::Q4_0>};
  return {scores_f32, mix<Dtype::F32>};
}

}  // namespace mt
