#pragma once
#include <immintrin.h>

#include "dtype/dtype.h"
#include "kernels/attributes.h"
#include "kernels/kernels.h"
#include "kernels/unpack.h"

// Blocks to 32 signed codes a register and the scales that go with them, with AVX2; shared by
// decoding and dot products. Static, and for files of AVX2 functions alone (attributes.h).
namespace mt::avx2 {

MT_AVX2_INLINE __m128i load16(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
MT_AVX2_INLINE __m256i load32(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
MT_AVX2_INLINE float half(const uint8_t* p) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(load_as<uint16_t>(p))));
}

// 16 bytes: low nibbles to the low half, high nibbles to the high half.
MT_AVX2_INLINE __m256i nibbles(const uint8_t* p) {
  __m128i q = load16(p);
  __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(q), _mm_srli_epi16(q, 4), 1);
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

// Byte i all ones where bit i is set.
MT_AVX2_INLINE __m256i spread_bits(uint32_t bits) {
  __m256i byte_of =
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  __m256i v = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), byte_of);
  return _mm256_cmpeq_epi8(_mm256_and_si256(v, bit_of), bit_of);
}

// Activations, in steps, to codes; Rest: what that leaves of them, in steps of the second term.
template <bool Rest>
MT_AVX2_INLINE __m256i codes_of(__m256 steps) {
  const __m256i whole = _mm256_cvtps_epi32(steps);
  if constexpr (!Rest) return whole;
  return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_sub_ps(steps, _mm256_cvtepi32_ps(whole)),
                                          _mm256_set1_ps(float{kSecondSteps})));
}

// ---- formats with one scale a block ----
constexpr bool has_min(Dtype t) {
  return t == Dtype::Q4_1 || t == Dtype::Q5_1;
}
constexpr int small_bytes(Dtype t) {
  if (t == Dtype::Q4_1) return 20;
  if (t == Dtype::Q5_0) return 22;
  if (t == Dtype::Q5_1) return 24;
  if (t == Dtype::Q8_0) return 34;
  if (t == Dtype::MXFP4) return 17;
  return 18;  // Q4_0, IQ4_NL, Q2_0, Q1_0
}
constexpr int small_length(Dtype t) {
  return t == Dtype::Q1_0 ? 128 : t == Dtype::Q2_0 ? 64 : 32;
}

// Codes 32 g .. 32 g + 31 of the block.
template <Dtype T>
MT_AVX2_INLINE __m256i small_codes(const uint8_t* src, int g) {
  if constexpr (T == Dtype::Q4_0) {
    return _mm256_sub_epi8(nibbles(src + 2), _mm256_set1_epi8(8));
  } else if constexpr (T == Dtype::Q4_1) {
    return nibbles(src + 4);
  } else if constexpr (T == Dtype::Q5_0) {
    // A clear fifth bit puts the code 16 lower: bits 4 to 7 all ones are -16.
    __m256i set = spread_bits(load_as<uint32_t>(src + 2));
    return _mm256_or_si256(nibbles(src + 6), _mm256_andnot_si256(set, _mm256_set1_epi8(-16)));
  } else if constexpr (T == Dtype::Q5_1) {
    __m256i set = spread_bits(load_as<uint32_t>(src + 4));
    return _mm256_or_si256(nibbles(src + 8), _mm256_and_si256(set, _mm256_set1_epi8(16)));
  } else if constexpr (T == Dtype::Q8_0) {
    return load32(src + 2);
  } else if constexpr (T == Dtype::IQ4_NL || T == Dtype::MXFP4) {
    const int8_t* values = T == Dtype::MXFP4 ? e2m1_values : iq4_values;
    __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table),
                               nibbles(src + (T == Dtype::MXFP4 ? 1 : 2)));
  } else if constexpr (T == Dtype::Q2_0) {
    __m256i byte_of = _mm256_setr_epi32(0, 0x01010101, 0x02020202, 0x03030303, 0x04040404,
                                        0x05050505, 0x06060606, 0x07070707);
    __m256i v = _mm256_shuffle_epi8(_mm256_set1_epi64x(load_as<int64_t>(src + 2 + 8 * g)), byte_of);
    __m256i even = _mm256_blend_epi16(v, _mm256_srli_epi32(v, 4), 0xaa);
    __m256i mask = _mm256_set1_epi16(0x0003), odd_mask = _mm256_set1_epi16(0x0300);
    __m256i codes = _mm256_or_si256(_mm256_and_si256(even, mask),
                                    _mm256_and_si256(_mm256_srli_epi16(even, 2), odd_mask));
    return _mm256_sub_epi8(codes, _mm256_set1_epi8(1));
  } else {
    static_assert(T == Dtype::Q1_0);
    __m256i set = spread_bits(load_as<uint32_t>(src + 2 + 4 * g));
    return _mm256_sub_epi8(_mm256_set1_epi8(-1), _mm256_add_epi8(set, set));
  }
}

template <Dtype T>
MT_AVX2_INLINE float small_scale(const uint8_t* src) {
  if constexpr (T == Dtype::MXFP4) {
    uint32_t e = src[0];
    return _mm_cvtss_f32(_mm_castsi128_ps(
        _mm_cvtsi32_si128(static_cast<int>(e < 2 ? 0x00200000u << e : (e - 1) << 23))));
  } else {
    return half(src);
  }
}

// ---- formats of 256 weights ----
constexpr bool has_minus(Dtype t) {
  return t == Dtype::Q2_K || t == Dtype::Q4_K || t == Dtype::Q5_K;
}
constexpr int k_bytes(Dtype t) {
  if (t == Dtype::Q2_K) return 84;
  if (t == Dtype::Q3_K) return 110;
  if (t == Dtype::Q4_K) return 144;
  if (t == Dtype::Q5_K) return 176;
  return t == Dtype::Q6_K ? 210 : 136;
}
// Weights that share a scale.
constexpr int k_run(Dtype t) {
  return t == Dtype::Q2_K || t == Dtype::Q3_K || t == Dtype::Q6_K ? 16 : 32;
}

template <Dtype T>
MT_AVX2_INLINE __m256i k_codes(const uint8_t* src, int g) {
  if constexpr (T == Dtype::Q2_K) {
    __m256i q = _mm256_srli_epi16(load32(src + 16 + 32 * (g / 4)), 2 * (g % 4));
    return _mm256_and_si256(q, _mm256_set1_epi8(3));
  } else if constexpr (T == Dtype::Q3_K) {
    __m256i q = _mm256_srli_epi16(load32(src + 32 + 32 * (g / 4)), 2 * (g % 4));
    q = _mm256_and_si256(q, _mm256_set1_epi8(3));
    __m256i bit = _mm256_set1_epi8(static_cast<char>(1 << g));
    __m256i clear = _mm256_cmpeq_epi8(_mm256_and_si256(load32(src), bit), _mm256_setzero_si256());
    return _mm256_or_si256(q, _mm256_and_si256(clear, _mm256_set1_epi8(-4)));
  } else if constexpr (T == Dtype::Q4_K) {
    __m256i q = _mm256_srli_epi16(load32(src + 16 + 32 * (g / 2)), 4 * (g % 2));
    return _mm256_and_si256(q, _mm256_set1_epi8(15));
  } else if constexpr (T == Dtype::Q5_K) {
    __m256i q = _mm256_srli_epi16(load32(src + 48 + 32 * (g / 2)), 4 * (g % 2));
    __m256i bit = _mm256_set1_epi8(static_cast<char>(1 << g));
    __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(load32(src + 16), bit), bit);
    return _mm256_or_si256(_mm256_and_si256(q, _mm256_set1_epi8(15)),
                           _mm256_and_si256(set, _mm256_set1_epi8(16)));
  } else if constexpr (T == Dtype::Q6_K) {
    __m256i low = load32(src + 64 * (g / 4) + 32 * (g % 2));
    low = _mm256_and_si256(_mm256_srli_epi16(low, 4 * (g % 4 / 2)), _mm256_set1_epi8(15));
    // Bits 2s and 2s + 1 of the byte go to bits 4 and 5.
    __m256i high = load32(src + 128 + 32 * (g / 4));
    int s = g % 4;
    high = s < 2 ? _mm256_slli_epi16(high, 4 - 2 * s) : _mm256_srli_epi16(high, 2 * s - 4);
    high = _mm256_and_si256(high, _mm256_set1_epi8(0x30));
    return _mm256_sub_epi8(_mm256_or_si256(low, high), _mm256_set1_epi8(32));
  } else {
    static_assert(T == Dtype::IQ4_XS);
    __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(iq4_values));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibbles(src + 8 + 16 * g));
  }
}

MT_AVX2_INLINE __m256 bytes_to_floats(uint64_t bytes) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes))));
}

// scale[i] and min[i] of each run, multiplied out: weight = scale * code - min.
template <Dtype T>
MT_AVX2_INLINE void k_scales(const uint8_t* src, float (&scale)[16], float (&min)[16]) {
  if constexpr (T == Dtype::Q2_K) {
    __m256 d = _mm256_set1_ps(half(src + 80)), dmin = _mm256_set1_ps(half(src + 82));
    MT_UNROLL
    for (int i = 0; i < 16; i += 8) {
      uint64_t packed = load_as<uint64_t>(src + i), nibble = 0x0f0f0f0f0f0f0f0fu;
      _mm256_storeu_ps(scale + i, _mm256_mul_ps(d, bytes_to_floats(packed & nibble)));
      _mm256_storeu_ps(min + i, _mm256_mul_ps(dmin, bytes_to_floats(packed >> 4 & nibble)));
    }
  } else if constexpr (T == Dtype::Q3_K) {
    __m256 d = _mm256_set1_ps(half(src + 108)), offset = _mm256_set1_ps(32.0f);
    uint64_t first, second;
    unpack_k3_scales(src + 96, first, second);
    _mm256_storeu_ps(scale, _mm256_mul_ps(d, _mm256_sub_ps(bytes_to_floats(first), offset)));
    _mm256_storeu_ps(scale + 8, _mm256_mul_ps(d, _mm256_sub_ps(bytes_to_floats(second), offset)));
  } else if constexpr (T == Dtype::Q4_K || T == Dtype::Q5_K) {
    uint64_t scales, mins;
    unpack_k4_scales(src + 4, scales, mins);
    _mm256_storeu_ps(scale, _mm256_mul_ps(_mm256_set1_ps(half(src)), bytes_to_floats(scales)));
    _mm256_storeu_ps(min, _mm256_mul_ps(_mm256_set1_ps(half(src + 2)), bytes_to_floats(mins)));
  } else if constexpr (T == Dtype::Q6_K) {
    __m256 d = _mm256_set1_ps(half(src + 208));
    MT_UNROLL
    for (int i = 0; i < 16; i += 8) {
      __m128i packed = _mm_cvtsi64_si128(load_as<int64_t>(src + 192 + i));
      _mm256_storeu_ps(scale + i,
                       _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(packed))));
    }
  } else {
    static_assert(T == Dtype::IQ4_XS);
    __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(load_as<int>(src + 4)),
                                    _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(load_as<uint16_t>(src + 2)),
                                     _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    low = _mm256_and_si256(low, _mm256_set1_epi32(15));
    high = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
    __m256i stored = _mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32));
    _mm256_storeu_ps(scale, _mm256_mul_ps(_mm256_set1_ps(half(src)), _mm256_cvtepi32_ps(stored)));
  }
}

}  // namespace mt::avx2
