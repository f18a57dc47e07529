#include "kernels/attributes.h"
#include "kernels/avx512_intrinsics.h"
#include "kernels/tables.h"
#include "kernels/unpack.h"

// Weights to f32 with AVX-512. Formats of up to five bits look their values up: the 16 values of
// a block, computed as mt::decode_row computes them, stay in a register that vpermps indexes with
// the low four bits of each code, so that nothing need be masked.
namespace mt {
namespace {

MT_AVX512F_INLINE __m512 half(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_set1_epi16(load_as<short>(p)));
}

// 16 bytes to 16 lanes.
MT_AVX512F_INLINE __m512i codes16(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

MT_AVX512F_INLINE __m512 values_of(const int8_t (&table)[16]) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))));
}

MT_AVX512F_INLINE __m512 counting(int first) {
  __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_cvtepi32_ps(_mm512_add_epi32(lane, _mm512_set1_epi32(first)));
}

MT_AVX512F_INLINE void store_nibbles(const uint8_t* qs, __m512 values, float* dst) {
  __m512i codes = codes16(qs);
  _mm512_storeu_ps(dst, _mm512_permutexvar_ps(codes, values));
  _mm512_storeu_ps(dst + 16, _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), values));
}

// The values of codes 16..31 where the mask has the fifth bit.
MT_AVX512F_INLINE void store_five(__m512i codes, __mmask16 fifth, __m512 low, __m512 high,
                                  float* dst) {
  __m512 v = _mm512_permutexvar_ps(codes, low);
  _mm512_storeu_ps(dst, _mm512_mask_permutexvar_ps(v, fifth, codes, high));
}

MT_AVX512F void decode_q4_0(const uint8_t* src, float* dst, int64_t n) {
  __m512 values = counting(-8);
  for (int64_t i = 0; i < n; i += 32, src += 18)
    store_nibbles(src + 2, _mm512_mul_ps(values, half(src)), dst + i);
}

MT_AVX512F void decode_q4_1(const uint8_t* src, float* dst, int64_t n) {
  __m512 values = counting(0);
  for (int64_t i = 0; i < n; i += 32, src += 20) {
    __m512 v = _mm512_add_ps(_mm512_mul_ps(values, half(src)), half(src + 2));
    store_nibbles(src + 4, v, dst + i);
  }
}

MT_AVX512F void decode_iq4_nl(const uint8_t* src, float* dst, int64_t n) {
  __m512 values = values_of(iq4_values);
  for (int64_t i = 0; i < n; i += 32, src += 18)
    store_nibbles(src + 2, _mm512_mul_ps(values, half(src)), dst + i);
}

MT_AVX512F void decode_mxfp4(const uint8_t* src, float* dst, int64_t n) {
  __m512 values = values_of(e2m1_values);
  for (int64_t i = 0; i < n; i += 32, src += 17) {
    uint32_t e = src[0];
    uint32_t scale = e < 2 ? 0x00200000u << e : (e - 1) << 23;
    __m512 d = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(scale)));
    store_nibbles(src + 1, _mm512_mul_ps(values, d), dst + i);
  }
}

MT_AVX512F void decode_q5_0(const uint8_t* src, float* dst, int64_t n) {
  __m512 values0 = counting(-16), values1 = counting(0);
  for (int64_t i = 0; i < n; i += 32, src += 22) {
    __m512 d = half(src), low = _mm512_mul_ps(values0, d), high = _mm512_mul_ps(values1, d);
    __m512i codes = codes16(src + 6);
    store_five(codes, load_as<uint16_t>(src + 2), low, high, dst + i);
    store_five(_mm512_srli_epi32(codes, 4), load_as<uint16_t>(src + 4), low, high, dst + i + 16);
  }
}

MT_AVX512F void decode_q5_1(const uint8_t* src, float* dst, int64_t n) {
  __m512 values0 = counting(0), values1 = counting(16);
  for (int64_t i = 0; i < n; i += 32, src += 24) {
    __m512 d = half(src), m = half(src + 2);
    __m512 low = _mm512_add_ps(_mm512_mul_ps(values0, d), m);
    __m512 high = _mm512_add_ps(_mm512_mul_ps(values1, d), m);
    __m512i codes = codes16(src + 8);
    store_five(codes, load_as<uint16_t>(src + 4), low, high, dst + i);
    store_five(_mm512_srli_epi32(codes, 4), load_as<uint16_t>(src + 6), low, high, dst + i + 16);
  }
}

// Signed codes times a scale.
MT_AVX512F_INLINE void store_signed(__m128i codes, __m512 scale, float* dst) {
  __m512 v = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
  _mm512_storeu_ps(dst, _mm512_mul_ps(v, scale));
}

MT_AVX512F void decode_q8_0(const uint8_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n; i += 32, src += 34) {
    __m512 d = half(src);
    store_signed(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + 2)), d, dst + i);
    store_signed(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + 18)), d, dst + i + 16);
  }
}

MT_AVX512F void decode_q2_0(const uint8_t* src, float* dst, int64_t n) {
  __m512 values = _mm512_setr_ps(-1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2);
  __m512i shifts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  for (int64_t i = 0; i < n; i += 64, src += 18) {
    __m512 v = _mm512_mul_ps(values, half(src));
    MT_UNROLL
    for (int s = 0; s < 4; ++s) {
      __m512i codes = _mm512_srlv_epi32(_mm512_set1_epi32(load_as<int>(src + 2 + 4 * s)), shifts);
      _mm512_storeu_ps(dst + i + 16 * s, _mm512_permutexvar_ps(codes, v));
    }
  }
}

MT_AVX512F void decode_q1_0(const uint8_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n; i += 128, src += 18) {
    __m512 d = half(src);
    __m512 minus = _mm512_xor_ps(d, _mm512_set1_ps(-0.0f));
    MT_UNROLL
    for (int s = 0; s < 8; ++s) {
      __mmask16 bits = load_as<uint16_t>(src + 2 + 2 * s);
      _mm512_storeu_ps(dst + i + 16 * s, _mm512_mask_mov_ps(minus, bits, d));
    }
  }
}

MT_AVX512F void decode_f16(const uint8_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    __mmask16 lanes = static_cast<__mmask16>(n - i >= 16 ? 0xffffu : (1u << (n - i)) - 1u);
    __m256i h = _mm256_maskz_loadu_epi16(lanes, src + 2 * i);
    _mm512_mask_storeu_ps(dst + i, lanes, _mm512_cvtph_ps(h));
  }
}

MT_AVX512F void decode_bf16(const uint8_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    __mmask16 lanes = static_cast<__mmask16>(n - i >= 16 ? 0xffffu : (1u << (n - i)) - 1u);
    __m512i h = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, src + 2 * i));
    _mm512_mask_storeu_ps(dst + i, lanes, _mm512_castsi512_ps(_mm512_slli_epi32(h, 16)));
  }
}

MT_AVX512F void decode_q2_k(const uint8_t* src, float* dst, int64_t n) {
  __m512 values = _mm512_setr_ps(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
  for (; n > 0; n -= 256, src += 84, dst += 256) {
    __m512i packed = codes16(src);
    __m512i low = _mm512_and_si512(packed, _mm512_set1_epi32(15));
    float scale[16], min[16];
    _mm512_storeu_ps(scale, _mm512_mul_ps(half(src + 80), _mm512_cvtepi32_ps(low)));
    _mm512_storeu_ps(
        min, _mm512_mul_ps(half(src + 82), _mm512_cvtepi32_ps(_mm512_srli_epi32(packed, 4))));
    MT_UNROLL
    for (int sub = 0; sub < 16; ++sub) {
      __m512i codes = codes16(src + 16 + 32 * (sub / 8) + 16 * (sub % 2));
      codes = _mm512_srli_epi32(codes, static_cast<unsigned>(2 * (sub % 8 / 2)));
      __m512 v = _mm512_sub_ps(_mm512_mul_ps(_mm512_set1_ps(scale[sub]), values),
                               _mm512_set1_ps(min[sub]));
      _mm512_storeu_ps(dst + 16 * sub, _mm512_permutexvar_ps(codes, v));
    }
  }
}

MT_AVX512F void decode_q3_k(const uint8_t* src, float* dst, int64_t n) {
  __m256i three = _mm256_set1_epi8(3), four = _mm256_set1_epi8(4);
  for (; n > 0; n -= 256, src += 110, dst += 256) {
    uint64_t first, second;
    unpack_k3_scales(src + 96, first, second);
    __m128i packed = _mm_set_epi64x(static_cast<int64_t>(second), static_cast<int64_t>(first));
    __m512i sub_scales = _mm512_sub_epi32(_mm512_cvtepu8_epi32(packed), _mm512_set1_epi32(32));
    float scale[16];
    _mm512_storeu_ps(scale, _mm512_mul_ps(half(src + 108), _mm512_cvtepi32_ps(sub_scales)));
    __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src));
    MT_UNROLL
    for (int g = 0; g < 8; ++g) {
      __m256i qs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + 32 + 32 * (g / 4)));
      qs = _mm256_and_si256(_mm256_srli_epi16(qs, 2 * (g % 4)), three);
      __mmask32 clear = _mm256_testn_epi8_mask(high, _mm256_set1_epi8(static_cast<char>(1 << g)));
      qs = _mm256_mask_sub_epi8(qs, clear, qs, four);
      store_signed(_mm256_castsi256_si128(qs), _mm512_set1_ps(scale[2 * g]), dst + 32 * g);
      store_signed(_mm256_extracti128_si256(qs, 1), _mm512_set1_ps(scale[2 * g + 1]),
                   dst + 32 * g + 16);
    }
  }
}

// The scales and mins of a Q4_K or Q5_K block, multiplied out.
MT_AVX512F_INLINE void k4_scales(const uint8_t* src, float (&scale)[8], float (&min)[8]) {
  uint64_t scales, mins;
  unpack_k4_scales(src + 4, scales, mins);
  __m256 s =
      _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(scales))));
  __m256 m =
      _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(mins))));
  _mm256_storeu_ps(scale, _mm256_mul_ps(_mm512_castps512_ps256(half(src)), s));
  _mm256_storeu_ps(min, _mm256_mul_ps(_mm512_castps512_ps256(half(src + 2)), m));
}

MT_AVX512F void decode_q4_k(const uint8_t* src, float* dst, int64_t n) {
  __m512 values = counting(0);
  for (; n > 0; n -= 256, src += 144, dst += 256) {
    float scale[8], min[8];
    k4_scales(src, scale, min);
    MT_UNROLL
    for (int pair = 0; pair < 4; ++pair) {
      __m512i codes0 = codes16(src + 16 + 32 * pair), codes1 = codes16(src + 32 + 32 * pair);
      MT_UNROLL
      for (int sub = 2 * pair; sub < 2 * pair + 2; ++sub) {
        __m512 v = _mm512_sub_ps(_mm512_mul_ps(_mm512_set1_ps(scale[sub]), values),
                                 _mm512_set1_ps(min[sub]));
        _mm512_storeu_ps(dst + 32 * sub, _mm512_permutexvar_ps(codes0, v));
        _mm512_storeu_ps(dst + 32 * sub + 16, _mm512_permutexvar_ps(codes1, v));
        codes0 = _mm512_srli_epi32(codes0, 4);
        codes1 = _mm512_srli_epi32(codes1, 4);
      }
    }
  }
}

MT_AVX512F void decode_q5_k(const uint8_t* src, float* dst, int64_t n) {
  __m512 values0 = counting(0), values1 = counting(16);
  for (; n > 0; n -= 256, src += 176, dst += 256) {
    float scale[8], min[8];
    k4_scales(src, scale, min);
    __m256i fifth = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + 16));
    MT_UNROLL
    for (int pair = 0; pair < 4; ++pair) {
      __m512i codes0 = codes16(src + 48 + 32 * pair), codes1 = codes16(src + 64 + 32 * pair);
      MT_UNROLL
      for (int sub = 2 * pair; sub < 2 * pair + 2; ++sub) {
        __m512 s = _mm512_set1_ps(scale[sub]), m = _mm512_set1_ps(min[sub]);
        __m512 low = _mm512_sub_ps(_mm512_mul_ps(s, values0), m);
        __m512 high = _mm512_sub_ps(_mm512_mul_ps(s, values1), m);
        __mmask32 set = _mm256_test_epi8_mask(fifth, _mm256_set1_epi8(static_cast<char>(1 << sub)));
        store_five(codes0, static_cast<__mmask16>(set), low, high, dst + 32 * sub);
        store_five(codes1, static_cast<__mmask16>(set >> 16), low, high, dst + 32 * sub + 16);
        codes0 = _mm512_srli_epi32(codes0, 4);
        codes1 = _mm512_srli_epi32(codes1, 4);
      }
    }
  }
}

MT_AVX512F void decode_q6_k(const uint8_t* src, float* dst, int64_t n) {
  __m256i low_mask = _mm256_set1_epi8(15), high_mask = _mm256_set1_epi8(0x30);
  __m256i offset = _mm256_set1_epi8(32);
  for (; n > 0; n -= 256, src += 210, dst += 256) {
    __m512i sub_scales =
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + 192)));
    float scale[16];
    _mm512_storeu_ps(scale, _mm512_mul_ps(half(src + 208), _mm512_cvtepi32_ps(sub_scales)));
    MT_UNROLL
    for (int g = 0; g < 8; ++g) {
      const uint8_t* ql = src + 64 * (g / 4) + 32 * (g % 2);
      __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ql));
      __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + 128 + 32 * (g / 4)));
      low = _mm256_and_si256(_mm256_srli_epi16(low, 4 * (g % 4 / 2)), low_mask);
      // Bits 2s and 2s + 1 of the byte go to bits 4 and 5.
      int s = g % 4;
      high = s < 2 ? _mm256_slli_epi16(high, 4 - 2 * s) : _mm256_srli_epi16(high, 2 * s - 4);
      __m256i q = _mm256_or_si256(low, _mm256_and_si256(high, high_mask));
      q = _mm256_sub_epi8(q, offset);
      store_signed(_mm256_castsi256_si128(q), _mm512_set1_ps(scale[2 * g]), dst + 32 * g);
      store_signed(_mm256_extracti128_si256(q, 1), _mm512_set1_ps(scale[2 * g + 1]),
                   dst + 32 * g + 16);
    }
  }
}

MT_AVX512F void decode_iq4_xs(const uint8_t* src, float* dst, int64_t n) {
  __m512 values = values_of(iq4_values);
  __m256i low_shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  __m256i high_shifts = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
  for (; n > 0; n -= 256, src += 136, dst += 256) {
    __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(load_as<int>(src + 4)), low_shifts);
    __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(load_as<uint16_t>(src + 2)), high_shifts);
    low = _mm256_and_si256(low, _mm256_set1_epi32(15));
    high = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
    __m256i stored = _mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32));
    float scale[8];
    _mm256_storeu_ps(scale,
                     _mm256_mul_ps(_mm512_castps512_ps256(half(src)), _mm256_cvtepi32_ps(stored)));
    MT_UNROLL
    for (int sub = 0; sub < 8; ++sub) {
      __m512 v = _mm512_mul_ps(_mm512_set1_ps(scale[sub]), values);
      store_nibbles(src + 8 + 16 * sub, v, dst + 32 * sub);
    }
  }
}

}  // namespace

MT_AVX512F void avx512_decode_row(Dtype dtype, const std::byte* bytes, float* dst, int64_t n) {
  const uint8_t* src = reinterpret_cast<const uint8_t*>(bytes);
  switch (dtype) {
    case Dtype::F16:
      return decode_f16(src, dst, n);
    case Dtype::BF16:
      return decode_bf16(src, dst, n);
    case Dtype::Q4_0:
      return decode_q4_0(src, dst, n);
    case Dtype::Q4_1:
      return decode_q4_1(src, dst, n);
    case Dtype::Q5_0:
      return decode_q5_0(src, dst, n);
    case Dtype::Q5_1:
      return decode_q5_1(src, dst, n);
    case Dtype::Q8_0:
      return decode_q8_0(src, dst, n);
    case Dtype::Q2_K:
      return decode_q2_k(src, dst, n);
    case Dtype::Q3_K:
      return decode_q3_k(src, dst, n);
    case Dtype::Q4_K:
      return decode_q4_k(src, dst, n);
    case Dtype::Q5_K:
      return decode_q5_k(src, dst, n);
    case Dtype::Q6_K:
      return decode_q6_k(src, dst, n);
    case Dtype::IQ4_NL:
      return decode_iq4_nl(src, dst, n);
    case Dtype::IQ4_XS:
      return decode_iq4_xs(src, dst, n);
    case Dtype::MXFP4:
      return decode_mxfp4(src, dst, n);
    case Dtype::Q1_0:
      return decode_q1_0(src, dst, n);
    case Dtype::Q2_0:
      return decode_q2_0(src, dst, n);
    case Dtype::F32:
    case Dtype::IQ2_XXS:
    case Dtype::IQ2_XS:
    case Dtype::IQ3_XXS:
    case Dtype::IQ1_S:
    case Dtype::IQ3_S:
    case Dtype::IQ2_S:
    case Dtype::I8:
    case Dtype::I16:
    case Dtype::I32:
    case Dtype::I64:
    case Dtype::F64:
    case Dtype::IQ1_M:
    case Dtype::TQ1_0:
    case Dtype::TQ2_0:
    case Dtype::NVFP4:
      return mt::decode_row(dtype, bytes, dst, n);
  }
}

}  // namespace mt
