#include <immintrin.h>

#include "kernels/avx2_codes.h"
#include "kernels/tables.h"

// Weights to f32 with AVX2: codes to f32, then the products and sums of mt::decode_row.
namespace mt {
namespace {

using namespace avx2;

MT_AVX2_INLINE __m256 code_values(__m128i codes) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
}

// Sixteen codes times a scale.
MT_AVX2_INLINE void store(__m128i codes, __m256 scale, float* dst) {
  _mm256_storeu_ps(dst, _mm256_mul_ps(code_values(codes), scale));
  _mm256_storeu_ps(dst + 8, _mm256_mul_ps(code_values(_mm_unpackhi_epi64(codes, codes)), scale));
}
MT_AVX2_INLINE void store(__m128i codes, __m256 scale, __m256 shift, float* dst) {
  __m256 high = code_values(_mm_unpackhi_epi64(codes, codes));
  _mm256_storeu_ps(dst, _mm256_add_ps(_mm256_mul_ps(code_values(codes), scale), shift));
  _mm256_storeu_ps(dst + 8, _mm256_add_ps(_mm256_mul_ps(high, scale), shift));
}

template <Dtype T>
MT_AVX2 void decode_small(const uint8_t* src, float* dst, int64_t n) {
  for (; n > 0; n -= small_length(T), src += small_bytes(T), dst += small_length(T)) {
    __m256 scale = _mm256_set1_ps(small_scale<T>(src));
    for (int g = 0; g < small_length(T) / 32; ++g) {
      __m256i codes = small_codes<T>(src, g);
      __m128i low = _mm256_castsi256_si128(codes), high = _mm256_extracti128_si256(codes, 1);
      if constexpr (has_min(T)) {
        __m256 shift = _mm256_set1_ps(half(src + 2));
        store(low, scale, shift, dst + 32 * g);
        store(high, scale, shift, dst + 32 * g + 16);
      } else {
        store(low, scale, dst + 32 * g);
        store(high, scale, dst + 32 * g + 16);
      }
    }
  }
}

template <Dtype T>
MT_AVX2 void decode_k(const uint8_t* src, float* dst, int64_t n) {
  constexpr int runs = 32 / k_run(T);
  for (; n > 0; n -= 256, src += k_bytes(T), dst += 256) {
    float scale[16], min[16];
    k_scales<T>(src, scale, min);
    MT_UNROLL
    for (int g = 0; g < 8; ++g) {
      __m256i codes = k_codes<T>(src, g);
      __m128i part[2] = {_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1)};
      MT_UNROLL
      for (int h = 0; h < 2; ++h) {
        int run = g * runs + h * (runs - 1);
        float* out = dst + 32 * g + 16 * h;
        __m256 s = _mm256_set1_ps(scale[run]);
        if constexpr (has_minus(T))
          store(part[h], s, _mm256_set1_ps(-min[run]), out);
        else
          store(part[h], s, out);
      }
    }
  }
}

MT_AVX2 void decode_f16(const uint8_t* src, float* dst, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(load16(src + 2 * i)));
  for (; i < n; ++i) dst[i] = half(src + 2 * i);
}

MT_AVX2 void decode_bf16(const uint8_t* src, float* dst, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    __m256i v = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(src + 2 * i)), 16);
    _mm256_storeu_ps(dst + i, _mm256_castsi256_ps(v));
  }
  for (; i < n; ++i) {
    uint32_t bits = static_cast<uint32_t>(load_as<uint16_t>(src + 2 * i)) << 16;
    std::memcpy(dst + i, &bits, 4);
  }
}

}  // namespace

void avx2_decode_row(Dtype dtype, const std::byte* bytes, float* dst, int64_t n) {
  const uint8_t* src = reinterpret_cast<const uint8_t*>(bytes);
  switch (dtype) {
    case Dtype::F16:
      return decode_f16(src, dst, n);
    case Dtype::BF16:
      return decode_bf16(src, dst, n);
    case Dtype::Q4_0:
      return decode_small<Dtype::Q4_0>(src, dst, n);
    case Dtype::Q4_1:
      return decode_small<Dtype::Q4_1>(src, dst, n);
    case Dtype::Q5_0:
      return decode_small<Dtype::Q5_0>(src, dst, n);
    case Dtype::Q5_1:
      return decode_small<Dtype::Q5_1>(src, dst, n);
    case Dtype::Q8_0:
      return decode_small<Dtype::Q8_0>(src, dst, n);
    case Dtype::IQ4_NL:
      return decode_small<Dtype::IQ4_NL>(src, dst, n);
    case Dtype::MXFP4:
      return decode_small<Dtype::MXFP4>(src, dst, n);
    case Dtype::Q1_0:
      return decode_small<Dtype::Q1_0>(src, dst, n);
    case Dtype::Q2_0:
      return decode_small<Dtype::Q2_0>(src, dst, n);
    case Dtype::Q2_K:
      return decode_k<Dtype::Q2_K>(src, dst, n);
    case Dtype::Q3_K:
      return decode_k<Dtype::Q3_K>(src, dst, n);
    case Dtype::Q4_K:
      return decode_k<Dtype::Q4_K>(src, dst, n);
    case Dtype::Q5_K:
      return decode_k<Dtype::Q5_K>(src, dst, n);
    case Dtype::Q6_K:
      return decode_k<Dtype::Q6_K>(src, dst, n);
    case Dtype::IQ4_XS:
      return decode_k<Dtype::IQ4_XS>(src, dst, n);
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
