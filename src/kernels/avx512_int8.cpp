#include <algorithm>
#include <cstring>

#include "kernels/attributes.h"
#include "kernels/avx512_lattice.h"
#include "kernels/avx512_rows.h"
#include "kernels/avx512_transpose.h"
#include "kernels/int8.h"
#include "kernels/int8_codes.h"
#include "kernels/tables.h"
#include "kernels/unpack.h"

// The batched int8 product with AVX-512 VNNI.
//
// vpdpbusd multiplies unsigned by signed bytes and adds four products a lane. The activations are
// the unsigned ones, 128 too high, which the group's start takes back: it is loaded instead of a
// zero and costs nothing. A group of 32 takes eight such instructions for each of 6 x 2 sums, then
// a conversion, a product of scales and a fused multiply-add each.
namespace mt {
namespace {

// ---- weights to codes, row by row ----
struct alignas(64) Row {
  int8_t codes[256];
  float scale[16];
  float min[16];  // eight are used
};
constexpr int64_t kRowWords = sizeof(Row) / 4;

using avx512::half;
using avx512::load32;

MT_AVX512_INLINE void store32(int8_t* p, __m256i v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}
// 32 codes from 16 bytes: the low nibbles first.
MT_AVX512_INLINE __m256i nibbles(const uint8_t* p) {
  __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(q), _mm_srli_epi16(q, 4), 1);
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}
MT_AVX512_INLINE __m256i iq4_table() {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(iq4_values)));
}

template <Dtype T>
MT_AVX512_INLINE void small_row(const uint8_t* p, int64_t depth, Row& row) {
  constexpr bool has_min = T == Dtype::Q4_1 || T == Dtype::Q5_1;
  constexpr bool five = T == Dtype::Q5_0 || T == Dtype::Q5_1;
  constexpr int codes_at = 2 + (has_min ? 2 : 0) + (five ? 4 : 0);
  constexpr int bytes = codes_at + (T == Dtype::Q8_0 ? 32 : 16);
  for (int64_t g = 0; g < depth / 32; ++g, p += bytes) {
    row.scale[g] = half(p);
    if constexpr (has_min) row.min[g] = half(p + 2);
    __m256i v;
    if constexpr (T == Dtype::Q8_0)
      v = load32(p + codes_at);
    else
      v = nibbles(p + codes_at);
    if constexpr (five)
      v = _mm256_mask_add_epi8(v, load_as<uint32_t>(p + codes_at - 4), v, _mm256_set1_epi8(16));
    if constexpr (T == Dtype::Q4_0) v = _mm256_sub_epi8(v, _mm256_set1_epi8(8));
    if constexpr (T == Dtype::Q5_0) v = _mm256_sub_epi8(v, _mm256_set1_epi8(16));
    if constexpr (T == Dtype::IQ4_NL) v = _mm256_shuffle_epi8(iq4_table(), v);
    store32(row.codes + 32 * g, v);
  }
}

template <bool Five>
MT_AVX512_INLINE void k4_row(const uint8_t* p, Row& row) {
  uint64_t scales, mins;
  unpack_k4_scales(p + 4, scales, mins);
  __m128i both = _mm_set_epi64x(static_cast<int64_t>(mins), static_cast<int64_t>(scales));
  __m512 v = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(both));
  __m512 d = _mm512_insertf32x8(_mm512_set1_ps(half(p)), _mm256_set1_ps(half(p + 2)), 1);
  v = _mm512_mul_ps(v, d);
  _mm256_storeu_ps(row.scale, _mm512_castps512_ps256(v));
  _mm256_storeu_ps(row.min, _mm256_xor_ps(_mm512_extractf32x8_ps(v, 1), _mm256_set1_ps(-0.0f)));
  const uint8_t* qs = p + (Five ? 48 : 16);
  __m256i fifth = _mm256_setzero_si256(), low = _mm256_set1_epi8(15);
  if constexpr (Five) fifth = load32(p + 16);
  MT_UNROLL
  for (int pair = 0; pair < 4; ++pair) {
    __m256i q = load32(qs + 32 * pair);
    __m256i codes[2] = {_mm256_and_si256(q, low), _mm256_and_si256(_mm256_srli_epi16(q, 4), low)};
    MT_UNROLL
    for (int h = 0; h < 2; ++h) {
      if constexpr (Five) {
        __mmask32 set =
            _mm256_test_epi8_mask(fifth, _mm256_set1_epi8(static_cast<char>(1 << (2 * pair + h))));
        codes[h] = _mm256_mask_add_epi8(codes[h], set, codes[h], _mm256_set1_epi8(16));
      }
      store32(row.codes + 64 * pair + 32 * h, codes[h]);
    }
  }
}

MT_AVX512_INLINE void q3_k_row(const uint8_t* p, Row& row) {
  uint64_t first, second;
  unpack_k3_scales(p + 96, first, second);
  __m128i packed = _mm_set_epi64x(static_cast<int64_t>(second), static_cast<int64_t>(first));
  alignas(32) int16_t scale[16];  // minus the sub-scales
  _mm256_store_si256(reinterpret_cast<__m256i*>(scale),
                     _mm256_sub_epi16(_mm256_set1_epi16(32), _mm256_cvtepu8_epi16(packed)));
  _mm256_storeu_ps(row.scale, _mm256_set1_ps(-half(p + 108)));
  __m256i high = load32(p), three = _mm256_set1_epi8(3), four = _mm256_set1_epi8(4);
  MT_UNROLL
  for (int g = 0; g < 8; ++g) {
    __m256i q = load32(p + 32 + 32 * (g / 4));
    q = _mm256_and_si256(_mm256_srli_epi16(q, 2 * (g % 4)), three);
    __mmask32 clear = _mm256_testn_epi8_mask(high, _mm256_set1_epi8(static_cast<char>(1 << g)));
    q = _mm256_mask_sub_epi8(q, clear, q, four);
    __m512i s =
        _mm512_inserti64x4(_mm512_set1_epi16(scale[2 * g]), _mm256_set1_epi16(scale[2 * g + 1]), 1);
    store32(row.codes + 32 * g,
            _mm512_cvtepi16_epi8(_mm512_mullo_epi16(_mm512_cvtepi8_epi16(q), s)));
  }
}

MT_AVX512_INLINE void q6_k_row(const uint8_t* p, Row& row) {
  __m512i scales = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 192)));
  _mm512_storeu_ps(row.scale,
                   _mm512_mul_ps(_mm512_set1_ps(half(p + 208)), _mm512_cvtepi32_ps(scales)));
  __m256i low_mask = _mm256_set1_epi8(15), high_mask = _mm256_set1_epi8(0x30);
  MT_UNROLL
  for (int g = 0; g < 8; ++g) {
    __m256i low = load32(p + 64 * (g / 4) + 32 * (g % 2)), high = load32(p + 128 + 32 * (g / 4));
    low = _mm256_and_si256(_mm256_srli_epi16(low, 4 * (g % 4 / 2)), low_mask);
    // Bits 2s and 2s + 1 of the byte go to bits 4 and 5.
    const int s = g % 4;
    high = s < 2 ? _mm256_slli_epi16(high, 4 - 2 * s) : _mm256_srli_epi16(high, 2 * s - 4);
    __m256i q = _mm256_or_si256(low, _mm256_and_si256(high, high_mask));
    store32(row.codes + 32 * g, _mm256_sub_epi8(q, _mm256_set1_epi8(32)));
  }
}

MT_AVX512_INLINE void iq4_xs_row(const uint8_t* p, Row& row) {
  __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(load_as<int>(p + 4)),
                                  _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
  __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(load_as<uint16_t>(p + 2)),
                                   _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
  low = _mm256_and_si256(low, _mm256_set1_epi32(15));
  high = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
  __m256i scale = _mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32));
  _mm256_storeu_ps(row.scale, _mm256_mul_ps(_mm256_set1_ps(half(p)), _mm256_cvtepi32_ps(scale)));
  MT_UNROLL
  for (int sub = 0; sub < 8; ++sub)
    store32(row.codes + 32 * sub, _mm256_shuffle_epi8(iq4_table(), nibbles(p + 8 + 16 * sub)));
}

template <Dtype T>
MT_AVX512_INLINE void lattice_row(const uint8_t* p, Row& row) {
  const avx512::LatticeBlock block = avx512::lattice_block<T>(p);
  MT_UNROLL
  for (int g = 0; g < 4; ++g)
    _mm512_storeu_si512(row.codes + 64 * g, avx512::signed_codes(block, g));
  if constexpr (int8_by_16(T))
    _mm512_storeu_ps(row.scale, block.scale);
  else  // every one is there twice
    _mm256_storeu_ps(
        row.scale,
        _mm512_castps512_ps256(_mm512_permutexvar_ps(
            _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0), block.scale)));
}

// Of 32 values under one scale: quantise_scale.
MT_AVX512_INLINE void scale32(const float* x, float& d, float& inverse) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  __m512i largest = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(a), magnitude),
                                     _mm512_and_si512(_mm512_castps_si512(b), magnitude));
  quantise_scale(_mm512_reduce_max_epu32(largest), d, inverse);
}

// Their codes, or those of the rest; returns the codes' sum.
template <bool Rest>
MT_AVX512_INLINE int round32(const float* x, float inverse, __m256i& codes) {
  __m512 by = _mm512_set1_ps(inverse);
  __m512i p = avx512::codes_of<Rest>(_mm512_mul_ps(_mm512_loadu_ps(x), by));
  __m512i q = avx512::codes_of<Rest>(_mm512_mul_ps(_mm512_loadu_ps(x + 16), by));
  if (inverse == 0.0f) p = q = _mm512_setzero_si512();
  codes = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm512_cvtepi32_epi8(p)),
                                  _mm512_cvtepi32_epi8(q), 1);
  return _mm512_reduce_add_epi32(_mm512_add_epi32(p, q));
}

MT_AVX512 void rounded_row(Dtype t, const std::byte* w, int64_t depth, Row& row) {
  alignas(64) float x[kInt8Depth];
  avx512_decode_row(t, w, x, depth);
  for (int64_t g = 0; g < depth / 32; ++g) {
    __m256i codes;
    float inverse;
    scale32(x + 32 * g, row.scale[g], inverse);
    round32<false>(x + 32 * g, inverse, codes);
    store32(row.codes + 32 * g, codes);
  }
}

MT_AVX512 void unpack_row(Dtype t, const std::byte* w, int64_t depth, Row& row) {
  const auto* p = reinterpret_cast<const uint8_t*>(w);
  const auto own = [&]<Dtype T>() MT_AVX512 {
    if constexpr (int8_small(T))
      small_row<T>(p, depth, row);
    else if constexpr (T == Dtype::Q3_K)
      q3_k_row(p, row);
    else if constexpr (T == Dtype::Q6_K)
      q6_k_row(p, row);
    else if constexpr (T == Dtype::IQ4_XS)
      iq4_xs_row(p, row);
    else
      k4_row<T == Dtype::Q5_K>(p, row);
  };
  if (int8_by_format(t, own)) return;
  if (t == Dtype::IQ2_XXS) return lattice_row<Dtype::IQ2_XXS>(p, row);
  if (t == Dtype::IQ2_XS) return lattice_row<Dtype::IQ2_XS>(p, row);
  if (t == Dtype::IQ2_S) return lattice_row<Dtype::IQ2_S>(p, row);
  if (t == Dtype::IQ3_XXS) return lattice_row<Dtype::IQ3_XXS>(p, row);
  if (t == Dtype::IQ3_S) return lattice_row<Dtype::IQ3_S>(p, row);
  rounded_row(t, w, depth, row);
}

// Words w..w+15 of 32 rows: to[i][r] = rows[r].word(w + i).
MT_AVX512_INLINE void turn(const Row* rows, int64_t word, void* to, int64_t count) {
  const float* from = reinterpret_cast<const float*>(rows) + word;
  float* out = static_cast<float*>(to);
  MT_UNROLL
  for (int half_rows = 0; half_rows < 2; ++half_rows) {
    __m512 v[16];
    MT_UNROLL
    for (int r = 0; r < 16; ++r) v[r] = _mm512_load_ps(from + (16 * half_rows + r) * kRowWords);
    transpose16(v);
    MT_UNROLL
    for (int i = 0; i < 16; ++i)
      if (i < count) _mm512_store_ps(out + 32 * i + 16 * half_rows, v[i]);
  }
}

MT_AVX512 void pack(Dtype t, const std::byte* w, int64_t row_bytes, int64_t rows, int64_t depth,
                    Int8Panel& panel) {
  int8_describe(t, panel);
  const int64_t words = panel.by_16 ? 4 : 8, groups = depth / 4 / words;
  Row unpacked[kInt8Outputs];
  for (int64_t r = 0; r < rows; ++r) unpack_row(t, w + r * row_bytes, depth, unpacked[r]);
  if (rows < kInt8Outputs) std::memset(unpacked + rows, 0, sizeof(Row) * size_t(32 - rows));
  for (int64_t i = 0; i < depth / 4; i += 16)
    turn(unpacked, i, panel.codes[i], std::min<int64_t>(16, depth / 4 - i));
  turn(unpacked, 64, panel.scale, groups);
  if (panel.has_min) turn(unpacked, 80, panel.min, groups);
  const __m512i one = _mm512_set1_epi8(1);
  for (int64_t g = 0; g < groups; ++g)
    for (int h = 0; h < 2; ++h) {
      __m512i sum = _mm512_setzero_si512();
      for (int64_t i = g * words; i < (g + 1) * words; ++i)
        sum = _mm512_dpbusd_epi32(sum, one, _mm512_load_si512(panel.codes[i][16 * h]));
      sum = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), sum), 7);
      _mm512_store_si512(panel.start[g] + 16 * h, sum);
    }
}

// ---- activations ----
MT_AVX512_INLINE void put(__m256i codes, float d, int total, int64_t t, Int8Block& block) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(block.codes[t]),
                      _mm256_xor_si256(codes, _mm256_set1_epi8(-128)));
  block.d[t] = d;
  block.sum[t] = d * static_cast<float>(total);
}

MT_AVX512 void quantise(const float* x, int64_t ldx, int64_t rows, int64_t n, int terms,
                        Int8Block* out) {
  for (int64_t b = 0; b < n / 32; ++b, out += terms) {
    for (int64_t t = 0; t < rows; ++t) {
      const float* values = x + t * ldx + 32 * b;
      float d, inverse;
      scale32(values, d, inverse);
      __m256i codes;
      const int total = round32<false>(values, inverse, codes);
      put(codes, d, total, t, out[0]);
      if (terms == 1) continue;
      const int rest = round32<true>(values, inverse, codes);
      put(codes, d / float{kSecondSteps}, kSecondSteps * total + rest, t, out[1]);
    }
    for (int term = 0; term < terms; ++term) int8_clear_tokens(rows, out[term]);
  }
}

// ---- the product ----
template <bool kBy16, bool kMin, int kTerms>
MT_AVX512 void tile(const Int8Panel& panel, int64_t depth, const Int8Block* x, int64_t rows,
                    float* y, int64_t ldy, int64_t n, bool accumulate) {
  constexpr int kTokens = kInt8Tokens, kWords = kBy16 ? 4 : 8;
  const __mmask16 low = first_lanes(n), high = first_lanes(n - 16);
  __m512 acc[kTokens][2];
  MT_UNROLL
  for (int t = 0; t < kTokens; ++t) {
    const bool there = accumulate && t < rows;
    acc[t][0] = _mm512_maskz_loadu_ps(there ? low : 0, y + (t < rows ? t : 0) * ldy);
    acc[t][1] = _mm512_maskz_loadu_ps(there ? high : 0, y + (t < rows ? t : 0) * ldy + 16);
  }
  const int64_t groups = depth / 4 / kWords;
  const int8_t* codes = panel.codes[0][0];
  for (int64_t g = 0; g < groups; ++g) {
    const Int8Block* blocks = x + (kBy16 ? g / 2 : g) * kTerms;
    const Int8Block& block = blocks[kTerms - 1];
    __m512i dot[kTokens][2];
    __m512i start0 = _mm512_load_si512(panel.start[g]);
    __m512i start1 = _mm512_load_si512(panel.start[g] + 16);
    if constexpr (kTerms == 2) {  // what the first term begins with is shifted
      start0 = _mm512_add_epi32(start0, _mm512_srai_epi32(start0, kSecondShift));
      start1 = _mm512_add_epi32(start1, _mm512_srai_epi32(start1, kSecondShift));
    }
    MT_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      dot[t][0] = start0;
      dot[t][1] = start1;
    }
    MT_UNROLL
    for (int term = 0; term < kTerms; ++term) {
      const uint8_t* q = blocks[term].codes[0] + (kBy16 ? g % 2 * 16 : 0);
      MT_UNROLL
      for (int t = 0; term == 1 && t < kTokens; ++t) {
        dot[t][0] = _mm512_slli_epi32(dot[t][0], kSecondShift);
        dot[t][1] = _mm512_slli_epi32(dot[t][1], kSecondShift);
      }
      MT_UNROLL
      for (int w = 0; w < kWords; ++w) {
        const __m512i w0 = _mm512_load_si512(codes + 128 * w);
        const __m512i w1 = _mm512_load_si512(codes + 128 * w + 64);
        MT_UNROLL
        for (int t = 0; t < kTokens; ++t) {
          const __m512i four = _mm512_set1_epi32(load_as<int>(q + 32 * t + 4 * w));
          dot[t][0] = _mm512_dpbusd_epi32(dot[t][0], four, w0);
          dot[t][1] = _mm512_dpbusd_epi32(dot[t][1], four, w1);
        }
      }
    }
    codes += 128 * kWords;
    const __m512 scale0 = _mm512_load_ps(panel.scale[g]);
    const __m512 scale1 = _mm512_load_ps(panel.scale[g] + 16);
    MT_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      const __m512 d = _mm512_set1_ps(block.d[t]);
      acc[t][0] =
          _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][0]), _mm512_mul_ps(scale0, d), acc[t][0]);
      acc[t][1] =
          _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][1]), _mm512_mul_ps(scale1, d), acc[t][1]);
    }
    if constexpr (kMin) {
      const __m512 min0 = _mm512_load_ps(panel.min[g]), min1 = _mm512_load_ps(panel.min[g] + 16);
      MT_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        const __m512 sum = _mm512_set1_ps(block.sum[t]);
        acc[t][0] = _mm512_fmadd_ps(min0, sum, acc[t][0]);
        acc[t][1] = _mm512_fmadd_ps(min1, sum, acc[t][1]);
      }
    }
  }
  MT_UNROLL
  for (int t = 0; t < kTokens; ++t)
    if (t < rows) {
      _mm512_mask_storeu_ps(y + t * ldy, low, acc[t][0]);
      _mm512_mask_storeu_ps(y + t * ldy + 16, high, acc[t][1]);
    }
}

void multiply(const Int8Panel& panel, int64_t depth, const Int8Block* x, int terms, int64_t rows,
              float* y, int64_t ldy, int64_t n, bool accumulate) {
  int8_by_layout(panel, terms, [&]<bool kBy16, bool kMin, int kTerms>() {
    tile<kBy16, kMin, kTerms>(panel, depth, x, rows, y, ldy, n, accumulate);
  });
}

}  // namespace

const Int8Kernels& avx512_int8_kernels() {
  static const Int8Kernels table = {.quantise = quantise, .pack = pack, .multiply = multiply};
  return table;
}

}  // namespace mt
