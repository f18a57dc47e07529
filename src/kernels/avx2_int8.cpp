#include <algorithm>
#include <cstring>

#include "kernels/avx2_codes.h"
#include "kernels/avx2_rows.h"
#include "kernels/int8.h"
#include "kernels/int8_codes.h"
#include "kernels/tables.h"

// The batched int8 product with AVX2.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds two products in 16 bits, where it
// saturates. The activations are the unsigned ones, 128 too high, as long as 255 times the largest
// code allows that; the fewer bits a code has, the more of its products are added before they are
// widened. Beside codes of a whole byte the code's sign goes to the activation.
namespace mt {
namespace {

using namespace avx2;

// ---- weights to codes, row by row ----
struct alignas(32) Row {
  int8_t codes[256];
  float scale[16];
  float min[16];  // eight are used
};
constexpr int64_t kRowWords = sizeof(Row) / 4;

MT_AVX2_INLINE void store32(int8_t* p, __m256i v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}

template <Dtype T>
MT_AVX2 void small_row(const uint8_t* p, int64_t depth, Row& row) {
  for (int64_t g = 0; g < depth / 32; ++g, p += small_bytes(T)) {
    row.scale[g] = small_scale<T>(p);
    if constexpr (has_min(T)) row.min[g] = half(p + 2);
    store32(row.codes + 32 * g, small_codes<T>(p, 0));
  }
}

template <Dtype T>
MT_AVX2 void k_row(const uint8_t* p, Row& row) {
  k_scales<T>(p, row.scale, row.min);
  if constexpr (has_minus(T))
    _mm256_storeu_ps(row.min, _mm256_xor_ps(_mm256_loadu_ps(row.min), _mm256_set1_ps(-0.0f)));
  MT_UNROLL
  for (int g = 0; g < 8; ++g) store32(row.codes + 32 * g, k_codes<T>(p, g));
}

// Codes times their sub-scales fit a byte with the sign turned: one scale for all.
MT_AVX2 void q3_k_row(const uint8_t* p, Row& row) {
  uint64_t first, second;
  unpack_k3_scales(p + 96, first, second);
  const __m128i packed = _mm_set_epi64x(static_cast<int64_t>(second), static_cast<int64_t>(first));
  alignas(32) int16_t scale[16];  // minus the sub-scales
  _mm256_store_si256(reinterpret_cast<__m256i*>(scale),
                     _mm256_sub_epi16(_mm256_set1_epi16(32), _mm256_cvtepu8_epi16(packed)));
  _mm256_storeu_ps(row.scale, _mm256_set1_ps(-half(p + 108)));
  MT_UNROLL
  for (int g = 0; g < 8; ++g) {
    const __m256i q = k_codes<Dtype::Q3_K>(p, g);
    const __m256i a = _mm256_mullo_epi16(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(q)),
                                         _mm256_set1_epi16(scale[2 * g]));
    const __m256i b = _mm256_mullo_epi16(_mm256_cvtepi8_epi16(_mm256_extracti128_si256(q, 1)),
                                         _mm256_set1_epi16(scale[2 * g + 1]));
    store32(row.codes + 32 * g, _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xd8));
  }
}

// Of 32 values under one scale: quantise_scale.
MT_AVX2_INLINE void scale32(const float* x, float& d, float& inverse) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  MT_UNROLL
  for (int i = 0; i < 4; ++i)
    largest = _mm256_max_epu32(
        largest, _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + 8 * i)), magnitude));
  __m128i of4 =
      _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  of4 = _mm_max_epu32(of4, _mm_shuffle_epi32(of4, 0x4e));
  of4 = _mm_max_epu32(of4, _mm_shuffle_epi32(of4, 0xb1));
  quantise_scale(static_cast<uint32_t>(_mm_cvtsi128_si32(of4)), d, inverse);
}

// Their codes, or those of the rest; returns the codes' sum.
template <bool Rest>
MT_AVX2_INLINE int round32(const float* x, float inverse, __m256i& codes) {
  const __m256 by = _mm256_set1_ps(inverse);
  __m256i sum = _mm256_setzero_si256(), q[4];
  MT_UNROLL
  for (int i = 0; i < 4; ++i) {
    q[i] = codes_of<Rest>(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), by));
    if (inverse == 0.0f) q[i] = _mm256_setzero_si256();
    sum = _mm256_add_epi32(sum, q[i]);
  }
  __m128i sum4 = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  sum4 = _mm_add_epi32(sum4, _mm_shuffle_epi32(sum4, 0x4e));
  const __m256i packed =
      _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  codes = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum4, _mm_shuffle_epi32(sum4, 0xb1)));
}

MT_AVX2 void rounded_row(Dtype t, const std::byte* w, int64_t depth, Row& row) {
  alignas(32) float x[kInt8Depth];
  avx2_decode_row(t, w, x, depth);
  for (int64_t g = 0; g < depth / 32; ++g) {
    __m256i codes;
    float inverse;
    scale32(x + 32 * g, row.scale[g], inverse);
    round32<false>(x + 32 * g, inverse, codes);
    store32(row.codes + 32 * g, codes);
  }
}

void unpack_row(Dtype t, const std::byte* w, int64_t depth, Row& row) {
  const auto* p = reinterpret_cast<const uint8_t*>(w);
  const auto own = [&]<Dtype T>() {
    if constexpr (int8_small(T))
      small_row<T>(p, depth, row);
    else if constexpr (T == Dtype::Q3_K)
      q3_k_row(p, row);
    else
      k_row<T>(p, row);
  };
  if (int8_by_format(t, own)) return;
  if (!int8_own_codes(t)) return rounded_row(t, w, depth, row);
  Int8Row plain;
  int8_plain_row(t, w, depth, plain);
  std::memcpy(row.codes, plain.codes, sizeof plain.codes);
  std::memcpy(row.scale, plain.scale, sizeof plain.scale);
}

MT_AVX2_INLINE __m256i add_fours(__m256i pairs) {
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

MT_AVX2 void pack(Dtype t, const std::byte* w, int64_t row_bytes, int64_t rows, int64_t depth,
                  Int8Panel& panel) {
  int8_describe(t, panel);
  const int64_t words = panel.by_16 ? 4 : 8, groups = depth / 4 / words;
  Row unpacked[kInt8Outputs];
  for (int64_t r = 0; r < rows; ++r) unpack_row(t, w + r * row_bytes, depth, unpacked[r]);
  if (rows < kInt8Outputs) std::memset(unpacked + rows, 0, sizeof(Row) * size_t(32 - rows));
  auto turn = [&](int64_t word, int64_t count, void* to) {
    avx2_kernels().transpose_pairs(kInt8Outputs, count,
                                   reinterpret_cast<const uint32_t*>(unpacked) + word, kRowWords,
                                   static_cast<uint32_t*>(to));
  };
  turn(0, depth / 4, panel.codes);
  turn(64, groups, panel.scale);
  if (panel.has_min) turn(80, groups, panel.min);
  for (int64_t g = 0; g < groups; ++g)
    for (int h = 0; h < 4; ++h) {
      __m256i sum = _mm256_setzero_si256();
      for (int64_t i = g * words; i < (g + 1) * words; ++i)
        sum = _mm256_add_epi32(
            sum, add_fours(_mm256_maddubs_epi16(
                     _mm256_set1_epi8(1),
                     _mm256_load_si256(reinterpret_cast<__m256i*>(panel.codes[i][8 * h])))));
      sum = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_setzero_si256(), sum), 7);
      _mm256_store_si256(reinterpret_cast<__m256i*>(panel.start[g] + 8 * h), sum);
    }
}

// ---- activations ----
MT_AVX2_INLINE void put(__m256i codes, float d, int total, int64_t t, Int8Block& block) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(block.codes[t]),
                      _mm256_xor_si256(codes, _mm256_set1_epi8(-128)));
  block.d[t] = d;
  block.sum[t] = d * static_cast<float>(total);
}

MT_AVX2 void quantise(const float* x, int64_t ldx, int64_t rows, int64_t n, int terms,
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
MT_AVX2_INLINE __m256i load(const void* p) {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}

// Where all sums are registers, there is none left for what the compiler would do in advance.
MT_AVX2_INLINE void stay_here(__m256i& v) {
  __asm__ volatile("" : "+x"(v));
}

// Sums of a group for kTokens tokens and 16 outputs: codes are 128 bytes a word, q 32 a token.
// kAdded words' products are added in 16 bits. They are added to low and high.
template <int kTokens, int kWords, int kAdded>
MT_AVX2_INLINE void group_sums(const int8_t* codes, const uint8_t* q, __m256i (&low)[kTokens],
                               __m256i (&high)[kTokens]) {
  MT_KEEP_LOOP
  for (int c = 0; c < kWords; c += kAdded) {
    __m256i pairs0[kTokens], pairs1[kTokens];
    MT_UNROLL
    for (int t = 0; t < kTokens; ++t) pairs0[t] = pairs1[t] = _mm256_setzero_si256();
    MT_KEEP_LOOP
    for (int w = 0; w < kAdded; ++w, codes += 128, q += 4) {
      const __m256i w0 = load(codes), w1 = load(codes + 32);
      MT_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        __m256i four = _mm256_set1_epi32(load_as<int>(q + 32 * t));
        stay_here(four);
        pairs0[t] = _mm256_add_epi16(pairs0[t], _mm256_maddubs_epi16(four, w0));
        pairs1[t] = _mm256_add_epi16(pairs1[t], _mm256_maddubs_epi16(four, w1));
        stay_here(pairs0[t]);
        stay_here(pairs1[t]);
      }
    }
    MT_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      low[t] = _mm256_add_epi32(low[t], add_fours(pairs0[t]));
      high[t] = _mm256_add_epi32(high[t], add_fours(pairs1[t]));
    }
  }
}

// The same for codes of a whole byte.
template <int kTokens, int kWords>
MT_AVX2_INLINE void signed_group_sums(const int8_t* codes, const uint8_t* q,
                                      __m256i (&low)[kTokens], __m256i (&high)[kTokens]) {
  const __m256i high_bits = _mm256_set1_epi8(-128);
  MT_KEEP_LOOP
  for (int w = 0; w < kWords; ++w, codes += 128, q += 4) {
    const __m256i w0 = load(codes), w1 = load(codes + 32);
    const __m256i a0 = _mm256_abs_epi8(w0), a1 = _mm256_abs_epi8(w1);
    MT_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      const __m256i four = _mm256_xor_si256(_mm256_set1_epi32(load_as<int>(q + 32 * t)), high_bits);
      low[t] =
          _mm256_add_epi32(low[t], add_fours(_mm256_maddubs_epi16(a0, _mm256_sign_epi8(four, w0))));
      high[t] = _mm256_add_epi32(high[t],
                                 add_fours(_mm256_maddubs_epi16(a1, _mm256_sign_epi8(four, w1))));
    }
  }
}

// What the first of the terms' sums begin with: it is shifted with them before the second's.
template <int kTerms>
MT_AVX2_INLINE __m256i start_of(__m256i start) {
  if constexpr (kTerms == 1) return start;
  return _mm256_add_epi32(start, _mm256_srai_epi32(start, kSecondShift));
}

// kAdded: of group_sums; 0: signed. Outputs 16 at a time: twelve registers of sums.
template <bool kBy16, bool kMin, int kTerms, int kAdded>
MT_AVX2 void tile(const Int8Panel& panel, int64_t depth, const Int8Block* x, int64_t rows, float* y,
                  int64_t ldy, int64_t n, bool accumulate) {
  constexpr int kWords = kBy16 ? 4 : 8, kTokens = kAdded == 0 ? 3 : kInt8Tokens;
  const int64_t groups = depth / 4 / kWords;
  for (int64_t o = 0; o < n; o += 16) {
    const __m256i mask[2] = {first_lanes(n - o), first_lanes(n - o - 8)};
    for (int64_t first = 0; first < rows; first += kTokens) {
      __m256 acc0[kTokens], acc1[kTokens];
      MT_UNROLL
      for (int t = 0; t < kTokens; ++t) {
        const bool there = accumulate && first + t < rows;
        float* at = y + (there ? first + t : 0) * ldy + o;
        acc0[t] = there ? _mm256_maskload_ps(at, mask[0]) : _mm256_setzero_ps();
        acc1[t] = there ? _mm256_maskload_ps(at + 8, mask[1]) : _mm256_setzero_ps();
      }
      const int8_t* codes = panel.codes[0][o];
      MT_KEEP_LOOP
      for (int64_t g = 0; g < groups; ++g, codes += 128 * kWords) {
        const Int8Block* blocks = x + (kBy16 ? g / 2 : g) * kTerms;
        const Int8Block& block = blocks[kTerms - 1];
        __m256i start0 = _mm256_setzero_si256(), start1 = start0;
        if constexpr (kAdded != 0) {
          start0 = start_of<kTerms>(load(panel.start[g] + o));
          start1 = start_of<kTerms>(load(panel.start[g] + o + 8));
        }
        __m256i sum0[kTokens], sum1[kTokens];
        MT_UNROLL
        for (int t = 0; t < kTokens; ++t) sum0[t] = start0, sum1[t] = start1;
        MT_KEEP_LOOP
        for (int term = 0; term < kTerms; ++term) {
          MT_UNROLL
          for (int t = 0; term == 1 && t < kTokens; ++t) {
            sum0[t] = _mm256_slli_epi32(sum0[t], kSecondShift);
            sum1[t] = _mm256_slli_epi32(sum1[t], kSecondShift);
          }
          const uint8_t* q = blocks[term].codes[first] + (kBy16 ? g % 2 * 16 : 0);
          if constexpr (kAdded == 0)
            signed_group_sums<kTokens, kWords>(codes, q, sum0, sum1);
          else
            group_sums<kTokens, kWords, kAdded>(codes, q, sum0, sum1);
        }
        const __m256 scale0 = _mm256_load_ps(panel.scale[g] + o);
        const __m256 scale1 = _mm256_load_ps(panel.scale[g] + o + 8);
        MT_UNROLL
        for (int t = 0; t < kTokens; ++t) {
          const __m256 d = _mm256_set1_ps(block.d[first + t]);
          acc0[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum0[t]), _mm256_mul_ps(scale0, d), acc0[t]);
          acc1[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum1[t]), _mm256_mul_ps(scale1, d), acc1[t]);
        }
        if constexpr (kMin) {
          const __m256 min0 = _mm256_load_ps(panel.min[g] + o);
          const __m256 min1 = _mm256_load_ps(panel.min[g] + o + 8);
          MT_UNROLL
          for (int t = 0; t < kTokens; ++t) {
            const __m256 sum = _mm256_set1_ps(block.sum[first + t]);
            acc0[t] = _mm256_fmadd_ps(min0, sum, acc0[t]);
            acc1[t] = _mm256_fmadd_ps(min1, sum, acc1[t]);
          }
        }
      }
      MT_UNROLL
      for (int t = 0; t < kTokens; ++t)
        if (first + t < rows) {
          _mm256_maskstore_ps(y + (first + t) * ldy + o, mask[0], acc0[t]);
          _mm256_maskstore_ps(y + (first + t) * ldy + o + 8, mask[1], acc1[t]);
        }
    }
  }
}

template <bool kBy16, bool kMin, int kTerms>
void multiply_added(const Int8Panel& panel, int64_t depth, const Int8Block* x, int64_t rows,
                    float* y, int64_t ldy, int64_t n, bool accumulate) {
  // 2 x 255 x the largest code x the words added is at most 32767.
  if (panel.largest <= 8 && !kBy16)
    tile<kBy16, kMin, kTerms, kBy16 ? 4 : 8>(panel, depth, x, rows, y, ldy, n, accumulate);
  else if (panel.largest <= 16)
    tile<kBy16, kMin, kTerms, 4>(panel, depth, x, rows, y, ldy, n, accumulate);
  else if (panel.largest <= 32)
    tile<kBy16, kMin, kTerms, 2>(panel, depth, x, rows, y, ldy, n, accumulate);
  else if (panel.largest <= 64)
    tile<kBy16, kMin, kTerms, 1>(panel, depth, x, rows, y, ldy, n, accumulate);
  else
    tile<kBy16, kMin, kTerms, 0>(panel, depth, x, rows, y, ldy, n, accumulate);
}

void multiply(const Int8Panel& panel, int64_t depth, const Int8Block* x, int terms, int64_t rows,
              float* y, int64_t ldy, int64_t n, bool accumulate) {
  int8_by_layout(panel, terms, [&]<bool kBy16, bool kMin, int kTerms>() {
    multiply_added<kBy16, kMin, kTerms>(panel, depth, x, rows, y, ldy, n, accumulate);
  });
}

}  // namespace

const Int8Kernels& avx2_int8_kernels() {
  static const Int8Kernels table = {.quantise = quantise, .pack = pack, .multiply = multiply};
  return table;
}

}  // namespace mt
