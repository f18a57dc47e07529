#pragma once
#include <array>

#include "kernels/attributes.h"
#include "kernels/avx512_intrinsics.h"
#include "kernels/tables.h"
#include "kernels/unpack.h"

// Rows of packed weights times one quantised vector, with AVX-512 VNNI and VBMI.
//
// vpdpbusd multiplies unsigned codes by signed activations and adds four products a lane. Codes
// stay unsigned as they are stored; what they are stored too high by, `offset`, is made good by
// starting each sum from -offset * (sum of the activations), shared by all rows of the step. Each
// lane then belongs to one scale, which multiplies it in f32. R rows go side by side: they share
// the activations' preparation and give the memory R streams.
namespace mt::avx512 {

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
template <int K>
struct Tokens {
  Activations of[K];
};
// Where the product of row r and token t goes: y[r * row + t * token], of the sum of its terms,
// which are tokens to the kernels.
struct Out {
  float* y;
  int64_t row, token;
  int terms;
};

MT_AVX512_INLINE __m512i load64(const void* p) {
  return _mm512_loadu_si512(p);
}
MT_AVX512_INLINE __m256i load32(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
MT_AVX512_INLINE __m512i load(const std::array<uint8_t, 64>& index) {
  return _mm512_loadu_si512(index.data());
}
MT_AVX512_INLINE __m512i dot4(__m512i sum, __m512i codes, __m512i x) {
  return _mm512_dpbusd_epi32(sum, codes, x);
}
MT_AVX512_INLINE __m512i minus(__m512i v) {
  return _mm512_sub_epi32(_mm512_setzero_si512(), v);
}
MT_AVX512_INLINE __m512i low_nibbles(__m512i v) {
  return _mm512_and_si512(v, _mm512_set1_epi8(15));
}
MT_AVX512_INLINE __m512i high_nibbles(__m512i v) {
  return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
}
MT_AVX512_INLINE __m512 to_lanes(__m512i lanes, __m512 v) {
  return _mm512_permutexvar_ps(lanes, v);
}
// Every lane beside itself.
MT_AVX512_INLINE __m512 twice(__m256 v) {
  return to_lanes(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7),
                  _mm512_castps256_ps512(v));
}
MT_AVX512_INLINE __m512i runs_of_4(int a, int b, int c, int d) {
  return _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
}
MT_AVX512_INLINE float half(const uint8_t* p) {
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(load_as<uint16_t>(p))));
}
MT_AVX512_INLINE float add_lanes(__m512 v) {
  __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(s2) + _mm_cvtss_f32(_mm_shuffle_ps(s2, s2, 1));
}
// Unsigned codes of a table of signed values: 128 too high.
MT_AVX512_INLINE __m512i byte_table(const int8_t (&values)[16]) {
  __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  return _mm512_broadcast_i32x4(_mm_xor_si128(v, _mm_set1_epi8(-128)));
}

// Activations, in steps, to codes; Rest: what that leaves of them, in steps of the second term.
template <bool Rest>
MT_AVX512_INLINE __m512i codes_of(__m512 steps) {
  const __m512i whole = _mm512_cvtps_epi32(steps);
  if constexpr (!Rest) return whole;
  return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(steps, _mm512_cvtepi32_ps(whole)),
                                          _mm512_set1_ps(float{kSecondSteps})));
}

constexpr int prefetch_distance = 1024;
MT_AVX512_INLINE void prefetch(const uint8_t* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p + prefetch_distance), _MM_HINT_T0);
}

template <int R, int K>
MT_AVX512_INLINE void clear(__m512 (&acc)[R][K]) {
  MT_UNROLL
  for (int r = 0; r < R; ++r) MT_UNROLL
  for (int t = 0; t < K; ++t) acc[r][t] = _mm512_setzero_ps();
}
template <int R, int K>
MT_AVX512_INLINE void store(const __m512 (&acc)[R][K], const Out& out) {
  for (int r = 0; r < R; ++r) {
    float* y = out.y + r * out.row;
    for (int t = 0; out.terms == 1 && t < K; ++t) y[t * out.token] = add_lanes(acc[r][t]);
    for (int t = 0; out.terms == 2 && t + 1 < K; t += 2)
      y[t / 2 * out.token] = add_lanes(acc[r][t]) + add_lanes(acc[r][t + 1]);
  }
}

// All of rows_dot's arguments (kernels.h).
struct Product {
  const uint8_t* w;
  int64_t row_bytes, rows;
  const std::byte* q;
  int64_t q_bytes, tokens;
  int terms;
  int64_t n;
  float* y;
  int64_t ldy;
};

// `first`: counted in terms.
template <int K>
Tokens<K> tokens_at(const Product& p, int64_t first) {
  const QuantisedLayout layout = quantised_layout(p.n);
  Tokens<K> tokens;
  for (int t = 0; t < K; ++t) {
    const std::byte* q =
        p.q + (first + t) / p.terms * p.q_bytes + (first + t) % p.terms * layout.bytes;
    tokens.of[t] = {reinterpret_cast<const float*>(q),
                    reinterpret_cast<const int8_t*>(q + layout.q),
                    reinterpret_cast<const float*>(q + layout.d),
                    reinterpret_cast<const float*>(q + layout.sum)};
  }
  return tokens;
}

// Four rows a quarter of the matrix apart: four long streams instead of four short ones.
template <int K, class F>
void some_tokens(const Product& p, int64_t first, const F& rows_dot) {
  const Tokens<K> tokens = tokens_at<K>(p, first);
  const int64_t quarter = p.rows / 4;
  float* y = p.y + first / p.terms * p.ldy;
  for (int64_t i = 0; i < quarter; ++i) {
    Rows<4> four;
    for (int r = 0; r < 4; ++r) four.w[r] = p.w + (i + r * quarter) * p.row_bytes;
    rows_dot(four, tokens, p.n, Out{y + i, quarter, p.ldy, p.terms});
  }
  for (int64_t i = 4 * quarter; i < p.rows; ++i) {
    const Rows<1> row = {{p.w + i * p.row_bytes}};
    for (int t = 0; t < K; t += p.terms) {
      const Out to{y + t / p.terms * p.ldy + i, 0, 0, p.terms};
      if (p.terms == 1)
        rows_dot(row, Tokens<1>{{tokens.of[t]}}, p.n, to);
      else
        rows_dot(row, Tokens<2>{{tokens.of[t], tokens.of[(t + 1) % K]}}, p.n, to);
    }
  }
}

// By four tokens, or two of two terms, which share the unpacking of the weights, and the rest
// together. What is summed for a token, and in which order, does not depend on the others.
template <class F>
void all_rows(const Product& p, const F& rows_dot) {
  const int64_t n = p.tokens * p.terms;
  int64_t t = 0;
  for (; t + 4 <= n; t += 4) some_tokens<4>(p, t, rows_dot);
  if (n - t == 3) some_tokens<3>(p, t, rows_dot);
  if (n - t == 2) some_tokens<2>(p, t, rows_dot);
  if (n - t == 1) some_tokens<1>(p, t, rows_dot);
}

// The formats of 256 weights; the lattice formats.
void k_rows_dot(Dtype dtype, const Product& product);
void iq_rows_dot(Dtype dtype, const Product& product);

}  // namespace mt::avx512
