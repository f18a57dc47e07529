#include <immintrin.h>

#include <algorithm>

#include "kernels/avx2_codes.h"
#include "kernels/tables.h"

// Rows of packed weights times one quantised vector, with AVX2. Codes are signed here: the
// 8-bit multiplication wants one side unsigned, so the codes' signs move to the activations.
// |code| <= 128 and |q| <= 127 keep its sums of two products within 16 bits. Codes that are never
// negative need none of that.
namespace mt {
namespace {

using namespace avx2;

struct Activations {
  const float* x;
  const int8_t* q;
  const float* d;
  const float* sum;
};

template <int R>
struct Rows {
  const uint8_t* w[R];
};

MT_AVX2_INLINE float add_lanes(__m256 v) {
  __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(s2) + _mm_cvtss_f32(_mm_shuffle_ps(s2, s2, 1));
}

// add: to what is there, the first term's.
MT_AVX2_INLINE void put(float& y, float v, bool add) {
  y = add ? y + v : v;
}

constexpr bool unsigned_codes(Dtype t) {
  return has_min(t) || has_minus(t);
}

// Four products a lane, as f32.
template <Dtype T>
MT_AVX2_INLINE __m256 dot4(__m256i codes, __m256i x) {
  __m256i pairs;
  if constexpr (unsigned_codes(T))
    pairs = _mm256_maddubs_epi16(codes, x);
  else
    pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes));
  return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// The scales of 128 weights, one for each 32.
template <Dtype T>
MT_AVX2_INLINE __m128 four_scales(const uint8_t* p) {
  constexpr int size = small_bytes(T);
  if constexpr (T == Dtype::Q1_0) {
    return _mm_set1_ps(half(p));
  } else if constexpr (T == Dtype::Q2_0) {
    float a = half(p), b = half(p + size);
    return _mm_setr_ps(a, a, b, b);
  } else if constexpr (T == Dtype::MXFP4) {
    __m128i e = _mm_setr_epi32(p[0], p[size], p[2 * size], p[3 * size]);
    __m128i normal = _mm_slli_epi32(_mm_sub_epi32(e, _mm_set1_epi32(1)), 23);
    __m128i tiny = _mm_sllv_epi32(_mm_set1_epi32(0x00200000), e);
    __m128i is_tiny = _mm_cmpgt_epi32(_mm_set1_epi32(2), e);
    return _mm_castsi128_ps(_mm_blendv_epi8(normal, tiny, is_tiny));
  } else {
    __m128i h = _mm_cvtsi32_si128(load_as<uint16_t>(p));
    h = _mm_insert_epi16(h, load_as<short>(p + size), 1);
    h = _mm_insert_epi16(h, load_as<short>(p + 2 * size), 2);
    h = _mm_insert_epi16(h, load_as<short>(p + 3 * size), 3);
    return _mm_cvtph_ps(h);
  }
}

MT_AVX2_INLINE void prefetch(const uint8_t* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p + 1024), _MM_HINT_T0);
}

template <Dtype T, int R>
MT_AVX2 void small_rows(const Rows<R>& rows, const Activations& act, int64_t n, float* y,
                        int64_t stride, bool add) {
  constexpr int groups = small_length(T) / 32, size = small_bytes(T);
  __m256 acc[R];
  float shift[R] = {};
  MT_UNROLL
  for (int r = 0; r < R; ++r) acc[r] = _mm256_setzero_ps();
  // 128 weights a step, their scales converted together.
  int64_t at = 0;
  for (; at + 4 <= n / 32; at += 4) {
    const uint8_t* x = reinterpret_cast<const uint8_t*>(act.q + 32 * at);
    __m128 dx = _mm_loadu_ps(act.d + at);
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      const uint8_t* p = rows.w[r] + at / groups * size;
      prefetch(p);
      if constexpr (T == Dtype::Q8_0) prefetch(p + 64);
      alignas(16) float scale[4];
      _mm_store_ps(scale, _mm_mul_ps(four_scales<T>(p), dx));
      MT_UNROLL
      for (int g = 0; g < 4; ++g) {
        __m256i codes = small_codes<T>(p + g / groups * size, g % groups);
        acc[r] =
            _mm256_fmadd_ps(dot4<T>(codes, load32(x + 32 * g)), _mm256_set1_ps(scale[g]), acc[r]);
      }
      if constexpr (has_min(T)) {
        // The sums of 16 in pairs, each pair under its block's minimum.
        __m128 min = four_scales<T>(p + 2);
        __m256 twice = _mm256_set_m128(_mm_unpackhi_ps(min, min), _mm_unpacklo_ps(min, min));
        acc[r] = _mm256_fmadd_ps(twice, _mm256_loadu_ps(act.sum + 2 * at), acc[r]);
      }
    }
  }
  for (; at < n / 32; ++at) {
    __m256i x = load32(reinterpret_cast<const uint8_t*>(act.q + 32 * at));
    for (int r = 0; r < R; ++r) {
      const uint8_t* p = rows.w[r] + at / groups * size;
      __m256 scale = _mm256_set1_ps(small_scale<T>(p) * act.d[at]);
      __m256i codes = small_codes<T>(p, static_cast<int>(at % groups));
      acc[r] = _mm256_fmadd_ps(dot4<T>(codes, x), scale, acc[r]);
      if constexpr (has_min(T))
        shift[r] = __builtin_fmaf(half(p + 2), act.sum[2 * at] + act.sum[2 * at + 1], shift[r]);
    }
  }
  for (int r = 0; r < R; ++r) put(y[r * stride], add_lanes(acc[r]) + shift[r], add);
}

template <Dtype T, int R>
MT_AVX2 void k_rows(const Rows<R>& rows, const Activations& act, int64_t n, float* y,
                    int64_t stride, bool add) {
  __m256 acc[R];
  MT_UNROLL
  for (int r = 0; r < R; ++r) acc[r] = _mm256_setzero_ps();
  for (int64_t b = 0; b < n / 256; ++b) {
    __m256 dx = _mm256_loadu_ps(act.d + 8 * b);
    __m256 sum0 = _mm256_loadu_ps(act.sum + 16 * b), sum1 = _mm256_loadu_ps(act.sum + 16 * b + 8);
    // Sums of 32: pairs added within 128 bits, then the quarters put in order.
    __m256 sums =
        _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_hadd_ps(sum0, sum1)), 0xd8));
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      const uint8_t* p = rows.w[r] + b * k_bytes(T);
      for (int line = 0; line < k_bytes(T); line += 64) prefetch(p + line);
      float scale[16], min[16];
      k_scales<T>(p, scale, min);
      if constexpr (k_run(T) == 32) {
        if constexpr (has_minus(T)) acc[r] = _mm256_fnmadd_ps(_mm256_loadu_ps(min), sums, acc[r]);
        _mm256_storeu_ps(scale, _mm256_mul_ps(_mm256_loadu_ps(scale), dx));
      } else if constexpr (has_minus(T)) {
        acc[r] = _mm256_fnmadd_ps(_mm256_loadu_ps(min), sum0, acc[r]);
        acc[r] = _mm256_fnmadd_ps(_mm256_loadu_ps(min + 8), sum1, acc[r]);
      }
      MT_UNROLL
      for (int g = 0; g < 8; ++g) {
        __m256i x = load32(reinterpret_cast<const uint8_t*>(act.q + 256 * b + 32 * g));
        __m256 s;
        if constexpr (k_run(T) == 32) {
          s = _mm256_set1_ps(scale[g]);
        } else {
          s = _mm256_insertf128_ps(_mm256_set1_ps(scale[2 * g]), _mm_set1_ps(scale[2 * g + 1]), 1);
          s = _mm256_mul_ps(s, _mm256_set1_ps(act.d[8 * b + g]));
        }
        acc[r] = _mm256_fmadd_ps(dot4<T>(k_codes<T>(p, g), x), s, acc[r]);
      }
    }
  }
  for (int r = 0; r < R; ++r) put(y[r * stride], add_lanes(acc[r]), add);
}

template <Dtype T, int R>
MT_AVX2 void plain_rows(const Rows<R>& rows, const Activations& act, int64_t n, float* y,
                        int64_t stride, bool add) {
  constexpr int size = T == Dtype::F32 ? 4 : 2;
  __m256 acc[R];
  MT_UNROLL
  for (int r = 0; r < R; ++r) acc[r] = _mm256_setzero_ps();
  for (int64_t i = 0; i < n; i += 8) {
    __m256 x = _mm256_loadu_ps(act.x + i);
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      const uint8_t* p = rows.w[r] + size * i;
      if (i % 16 == 0) prefetch(p);
      __m256 v;
      if constexpr (T == Dtype::F32)
        v = _mm256_loadu_ps(reinterpret_cast<const float*>(p));
      else if constexpr (T == Dtype::F16)
        v = _mm256_cvtph_ps(load16(p));
      else
        v = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16));
      acc[r] = _mm256_fmadd_ps(v, x, acc[r]);
    }
  }
  for (int r = 0; r < R; ++r) put(y[r * stride], add_lanes(acc[r]), add);
}

template <Dtype T, int R>
MT_AVX2_INLINE void some_rows(const Rows<R>& rows, const Activations& act, int64_t n, float* y,
                              int64_t stride, bool add) {
  if constexpr (T == Dtype::F32 || T == Dtype::F16 || T == Dtype::BF16)
    plain_rows<T, R>(rows, act, n, y, stride, add);
  else if constexpr (T == Dtype::Q2_K || T == Dtype::Q3_K || T == Dtype::Q4_K || T == Dtype::Q5_K ||
                     T == Dtype::Q6_K || T == Dtype::IQ4_XS)
    k_rows<T, R>(rows, act, n, y, stride, add);
  else
    small_rows<T, R>(rows, act, n, y, stride, add);
}

// Four rows a quarter of the matrix apart: four long streams instead of four short ones.
template <Dtype T>
MT_AVX2 void all_rows(const uint8_t* w, int64_t row_bytes, int64_t rows, const Activations& act,
                      int64_t n, float* y, bool add) {
  int64_t quarter = rows / 4;
  for (int64_t i = 0; i < quarter; ++i) {
    Rows<4> four;
    for (int r = 0; r < 4; ++r) four.w[r] = w + (i + r * quarter) * row_bytes;
    some_rows<T, 4>(four, act, n, y + i, quarter, add);
  }
  for (int64_t i = 4 * quarter; i < rows; ++i) {
    Rows<1> one = {{w + i * row_bytes}};
    some_rows<T, 1>(one, act, n, y + i, 0, add);
  }
}

// Rest: the second of two terms.
template <bool Rest>
MT_AVX2 void quantise_term(const float* x, int64_t n, std::byte* blob) {
  QuantisedLayout layout = quantised_layout(n);
  quantise_padding(x, n, blob);
  __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int64_t b = 0; b < n / 32; ++b) {
    __m256 v[4];
    __m256i largest = _mm256_setzero_si256();
    MT_UNROLL
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + 32 * b + 8 * i);
      largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    }
    __m128i m =
        _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    float d, inverse;
    quantise_scale(static_cast<uint32_t>(_mm_cvtsi128_si32(m)), d, inverse);
    if (Rest) d /= float{kSecondSteps};
    __m256i q[4];
    MT_UNROLL
    for (int i = 0; i < 4; ++i) {
      q[i] = codes_of<Rest>(_mm256_mul_ps(v[i], _mm256_set1_ps(inverse)));
      if (inverse == 0.0f) q[i] = _mm256_setzero_si256();
    }
    MT_UNROLL
    for (int h = 0; h < 2; ++h) {
      // 16 codes: packing works within 128 bits, so the quarters are put in order between.
      __m256i words = _mm256_packs_epi32(q[2 * h], q[2 * h + 1]);
      words = _mm256_permute4x64_epi64(words, 0xd8);
      __m128i bytes =
          _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(blob + layout.q + 32 * b + 16 * h), bytes);
      __m256i total = _mm256_add_epi32(q[2 * h], q[2 * h + 1]);
      __m128i t = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
      t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
      t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
      float sum = d * static_cast<float>(_mm_cvtsi128_si32(t));
      std::memcpy(blob + layout.sum + 8 * b + 4 * h, &sum, 4);
    }
    std::memcpy(blob + layout.d + 4 * b, &d, 4);
  }
}

// One token's one term.
void one_term(Dtype dtype, const std::byte* bytes, int64_t row_bytes, int64_t rows,
              const std::byte* blob, int64_t n, float* y, bool add) {
  QuantisedLayout layout = quantised_layout(n);
  const uint8_t* w = reinterpret_cast<const uint8_t*>(bytes);
  Activations act = {reinterpret_cast<const float*>(blob),
                     reinterpret_cast<const int8_t*>(blob + layout.q),
                     reinterpret_cast<const float*>(blob + layout.d),
                     reinterpret_cast<const float*>(blob + layout.sum)};
  switch (dtype) {
#define MT_CASE(T) \
  case Dtype::T:   \
    return all_rows<Dtype::T>(w, row_bytes, rows, act, n, y, add);
    MT_CASE(F32)
    MT_CASE(F16)
    MT_CASE(BF16)
    MT_CASE(Q4_0)
    MT_CASE(Q4_1)
    MT_CASE(Q5_0)
    MT_CASE(Q5_1)
    MT_CASE(Q8_0)
    MT_CASE(Q2_K)
    MT_CASE(Q3_K)
    MT_CASE(Q4_K)
    MT_CASE(Q5_K)
    MT_CASE(Q6_K)
    MT_CASE(IQ4_NL)
    MT_CASE(IQ4_XS)
    MT_CASE(MXFP4)
    MT_CASE(Q1_0)
    MT_CASE(Q2_0)
#undef MT_CASE
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
      return;  // the reference's
  }
}

}  // namespace

void avx2_quantise(const float* x, int64_t n, int terms, std::byte* blob) {
  quantise_term<false>(x, n, blob);
  if (terms == 2) quantise_term<true>(x, n, blob + quantised_layout(n).bytes);
}

void avx2_rows_dot(Dtype dtype, const std::byte* w, int64_t row_bytes, int64_t rows,
                   const std::byte* q, int64_t q_bytes, int64_t tokens, int terms, int64_t n,
                   float* y, int64_t ldy) {
  if (!reference_has_rows_dot(dtype))
    return reference_rows_dot(dtype, w, row_bytes, rows, q, q_bytes, tokens, terms, n, y, ldy);
  if (info(dtype).block_length == 1) terms = 1;
  // The second term finds the rows in the second-level cache.
  const int64_t near = std::max<int64_t>(16, (256 << 10) / row_bytes / 16 * 16);
  const int64_t at_once = terms == 1 ? rows : near, bytes = quantised_layout(n).bytes;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < rows; r += at_once)
      for (int term = 0; term < terms; ++term)
        one_term(dtype, w + r * row_bytes, row_bytes, std::min(at_once, rows - r),
                 q + t * q_bytes + term * bytes, n, y + t * ldy + r, term == 1);
}

}  // namespace mt
