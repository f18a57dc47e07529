#include "kernels/avx512_dot.h"

// The dot products of the formats with short blocks or none, the quantisation of activations, and
// the choice by format.
namespace mt {
namespace {

using namespace avx512;

// ---- four short blocks a step, seen through a window of two overlapping registers ----
// Where byte `at` of a step of 4 * size bytes lies in the window: the first register holds its
// first 64 bytes, the second its last 64.
constexpr uint8_t in_window(int at, int size) {
  return static_cast<uint8_t>(at < 64 ? at : at - (4 * size - 64) + 64);
}
// 16 code bytes of each block.
constexpr std::array<uint8_t, 64> code_bytes(int size, int offset) {
  std::array<uint8_t, 64> index{};
  for (int i = 0; i < 64; ++i) index[size_t(i)] = in_window(i / 16 * size + offset + i % 16, size);
  return index;
}
// A 16-bit field of each block, four times over.
constexpr std::array<uint8_t, 64> half_bytes(int size, int offset) {
  std::array<uint8_t, 64> index{};
  for (int i = 0; i < 32; ++i) index[size_t(i)] = in_window(i / 8 * size + offset + i % 2, size);
  return index;
}
// For each of 16 weights of each block the byte of its fifth bit.
constexpr std::array<uint8_t, 64> bit_bytes(int size, int offset) {
  std::array<uint8_t, 64> index{};
  for (int i = 0; i < 64; ++i)
    index[size_t(i)] = in_window(i / 16 * size + offset + i % 16 / 8, size);
  return index;
}
// The block's first byte as an i32, four times over (the mask clears the rest).
constexpr std::array<uint8_t, 64> first_bytes(int size) {
  std::array<uint8_t, 64> index{};
  for (int i = 0; i < 64; ++i) index[size_t(i)] = in_window(i / 16 * size, size);
  return index;
}

constexpr int small_bytes(Dtype t) {
  if (t == Dtype::Q4_1) return 20;
  if (t == Dtype::Q5_0) return 22;
  if (t == Dtype::Q5_1) return 24;
  return t == Dtype::MXFP4 ? 17 : 18;
}
constexpr bool has_min(Dtype t) {
  return t == Dtype::Q4_1 || t == Dtype::Q5_1;
}
constexpr bool has_fifth(Dtype t) {
  return t == Dtype::Q5_0 || t == Dtype::Q5_1;
}
constexpr int offset_of(Dtype t) {
  if (t == Dtype::Q4_0) return 8;
  if (t == Dtype::Q5_0) return 16;
  return t == Dtype::IQ4_NL || t == Dtype::MXFP4 ? 128 : 0;
}

struct Window {
  __m512i a, b;
};
template <bool Full>
MT_AVX512_INLINE Window window(const uint8_t* p, int size, int blocks) {
  const uint8_t* second = p + 4 * size - 64;
  if constexpr (Full) return {load64(p), load64(second)};
  int there = blocks * size, there2 = there - (4 * size - 64);
  __mmask64 m = there >= 64 ? ~0ull : (1ull << there) - 1;
  __mmask64 m2 = there2 <= 0 ? 0 : (1ull << there2) - 1;
  return {_mm512_maskz_loadu_epi8(m, p), _mm512_maskz_loadu_epi8(m2, second)};
}
MT_AVX512_INLINE __m512i pick(Window v, const std::array<uint8_t, 64>& index) {
  return _mm512_permutex2var_epi8(v.a, load(index), v.b);
}

template <Dtype T>
MT_AVX512_INLINE __m512 step_scale(Window v) {
  constexpr int size = small_bytes(T);
  if constexpr (T == Dtype::MXFP4) {
    static constexpr auto index = first_bytes(size);
    __m512i e = _mm512_maskz_permutex2var_epi8(0x1111111111111111u, v.a, load(index), v.b);
    __m512i bits = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    __mmask16 tiny = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
    bits = _mm512_mask_sllv_epi32(bits, tiny, _mm512_set1_epi32(0x00200000), e);
    return _mm512_castsi512_ps(bits);
  } else {
    static constexpr auto index = half_bytes(size, 0);
    return _mm512_cvtph_ps(_mm512_castsi512_si256(pick(v, index)));
  }
}

// What a step takes of one token, in lanes.
struct SmallInput {
  __m512i low, high, start;
  __m512 dx, sums;
};
template <Dtype T>
MT_AVX512_INLINE SmallInput small_input(const Activations& act, int64_t block) {
  SmallInput in;
  __m512i x0 = load64(act.q + 32 * block), x1 = load64(act.q + 32 * block + 64);
  in.low = _mm512_shuffle_i64x2(x0, x1, 0x88);
  in.high = _mm512_shuffle_i64x2(x0, x1, 0xdd);
  in.dx = to_lanes(runs_of_4(0, 1, 2, 3), _mm512_castps128_ps512(_mm_loadu_ps(act.d + block)));
  in.start = _mm512_setzero_si512();
  if constexpr (offset_of(T) != 0) {
    __m512i offset = _mm512_set1_epi8(static_cast<char>(offset_of(T)));
    in.start = minus(dot4(dot4(in.start, offset, in.low), offset, in.high));
  }
  in.sums = _mm512_setzero_ps();
  if constexpr (has_min(T)) {
    __m512i lanes = _mm512_setr_epi32(0, 1, 0, 0, 2, 3, 0, 0, 4, 5, 0, 0, 6, 7, 0, 0);
    in.sums = _mm512_maskz_permutexvar_ps(
        0x3333, lanes, _mm512_castps256_ps512(_mm256_loadu_ps(act.sum + 2 * block)));
  }
  return in;
}

template <Dtype T, int R, int K, bool Full>
MT_AVX512_INLINE void small_step(const Rows<R>& rows, int64_t at, const Tokens<K>& tokens,
                                 int64_t block, int blocks, __m512 (&acc)[R][K]) {
  constexpr int size = small_bytes(T);
  constexpr int fifth_at = has_min(T) ? 4 : 2;
  constexpr int codes_at = T == Dtype::MXFP4 ? 1 : fifth_at + (has_fifth(T) ? 4 : 0);
  static constexpr auto code_index = code_bytes(size, codes_at);
  static constexpr auto low_bits = bit_bytes(size, fifth_at);
  static constexpr auto high_bits = bit_bytes(size, fifth_at + 2);
  static constexpr auto min_index = half_bytes(size, 2);

  SmallInput x[K];
  MT_UNROLL
  for (int t = 0; t < K; ++t) x[t] = small_input<T>(tokens.of[t], block);
  __m512i table = byte_table(T == Dtype::MXFP4 ? e2m1_values : iq4_values);
  __m512i bit = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201u));
  MT_UNROLL
  for (int r = 0; r < R; ++r) {
    const uint8_t* p = rows.w[r] + at;
    prefetch(p);
    Window v = window<Full>(p, size, blocks);
    __m512i qs = pick(v, code_index);
    __m512i low = low_nibbles(qs), high = high_nibbles(qs);
    if constexpr (has_fifth(T)) {
      __mmask64 set_low = _mm512_test_epi8_mask(pick(v, low_bits), bit);
      __mmask64 set_high = _mm512_test_epi8_mask(pick(v, high_bits), bit);
      low = _mm512_mask_add_epi8(low, set_low, low, _mm512_set1_epi8(16));
      high = _mm512_mask_add_epi8(high, set_high, high, _mm512_set1_epi8(16));
    }
    if constexpr (T == Dtype::IQ4_NL || T == Dtype::MXFP4) {
      low = _mm512_shuffle_epi8(table, low);
      high = _mm512_shuffle_epi8(table, high);
    }
    __m512 scale = step_scale<T>(v), min = _mm512_setzero_ps();
    if constexpr (has_min(T)) min = _mm512_cvtph_ps(_mm512_castsi512_si256(pick(v, min_index)));
    MT_UNROLL
    for (int t = 0; t < K; ++t) {
      __m512 dot = _mm512_cvtepi32_ps(dot4(dot4(x[t].start, low, x[t].low), high, x[t].high));
      acc[r][t] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, x[t].dx), acc[r][t]);
      if constexpr (has_min(T)) acc[r][t] = _mm512_fmadd_ps(min, x[t].sums, acc[r][t]);
    }
  }
}

template <Dtype T, int R, int K>
MT_AVX512 void small_rows(const Rows<R>& rows, const Tokens<K>& tokens, int64_t n, const Out& y) {
  __m512 acc[R][K];
  clear(acc);
  int64_t blocks = n / 32, b = 0;
  for (; b + 4 <= blocks; b += 4)
    small_step<T, R, K, true>(rows, b * small_bytes(T), tokens, b, 4, acc);
  if (b < blocks)
    small_step<T, R, K, false>(rows, b * small_bytes(T), tokens, b, static_cast<int>(blocks - b),
                               acc);
  store(acc, y);
}

// ---- Q8_0: two blocks a step ----
template <Dtype, int R, int K>
MT_AVX512 void q8_rows(const Rows<R>& rows, const Tokens<K>& tokens, int64_t n, const Out& y) {
  __m512 acc[R][K];
  clear(acc);
  __m512i high_bit = _mm512_set1_epi8(-128);
  for (int64_t b = 0; b < n / 32; b += 2) {
    bool both = b + 1 < n / 32;
    __m512i x[K], start[K];
    __m512 dx[K];
    MT_UNROLL
    for (int t = 0; t < K; ++t) {
      const Activations& act = tokens.of[t];
      x[t] = load64(act.q + 32 * b);
      start[t] = minus(dot4(_mm512_setzero_si512(), high_bit, x[t]));
      dx[t] = _mm512_insertf32x8(_mm512_set1_ps(act.d[b]), _mm256_set1_ps(act.d[b + 1]), 1);
    }
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      const uint8_t* p = rows.w[r] + 34 * b;
      // Where the row has an odd number of blocks the last is taken twice; its dx is 0 there.
      const uint8_t* second = both ? p + 34 : p;
      prefetch(p);
      __m512i codes =
          _mm512_inserti64x4(_mm512_castsi256_si512(load32(p + 2)), load32(second + 2), 1);
      codes = _mm512_xor_si512(codes, high_bit);
      __m256i d = _mm256_inserti128_si256(_mm256_set1_epi16(load_as<short>(p)),
                                          _mm_set1_epi16(load_as<short>(second)), 1);
      __m512 scale = _mm512_cvtph_ps(d);
      MT_UNROLL
      for (int t = 0; t < K; ++t) {
        __m512 dot = _mm512_cvtepi32_ps(dot4(start[t], codes, x[t]));
        acc[r][t] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, dx[t]), acc[r][t]);
      }
    }
  }
  store(acc, y);
}

// ---- Q2_0: four blocks of 64 a step ----
struct Q20Input {
  __m512i x[4], start;
  __m512 dx;
};
MT_AVX512_INLINE Q20Input q2_0_input(const Activations& act, int64_t block) {
  // Byte j of a block holds weights 4j..4j+3, so part s of the codes meets activations 4j+s:
  // sort those of each block by s, then collect each s over the four blocks.
  static constexpr auto sorted = [] {
    std::array<uint8_t, 64> index{};
    for (int i = 0; i < 64; ++i) index[size_t(i)] = static_cast<uint8_t>(4 * (i % 16) + i / 16);
    return index;
  }();
  Q20Input in;
  __m512i y[4];
  MT_UNROLL
  for (int b = 0; b < 4; ++b)
    y[b] = _mm512_permutexvar_epi8(load(sorted), load64(act.q + 64 * (block + b)));
  __m512i even01 = _mm512_shuffle_i64x2(y[0], y[1], 0x88);  // s = 0, 2 of block 0, then of 1
  __m512i even23 = _mm512_shuffle_i64x2(y[2], y[3], 0x88);
  __m512i odd01 = _mm512_shuffle_i64x2(y[0], y[1], 0xdd);
  __m512i odd23 = _mm512_shuffle_i64x2(y[2], y[3], 0xdd);
  in.x[0] = _mm512_shuffle_i64x2(even01, even23, 0x88);
  in.x[2] = _mm512_shuffle_i64x2(even01, even23, 0xdd);
  in.x[1] = _mm512_shuffle_i64x2(odd01, odd23, 0x88);
  in.x[3] = _mm512_shuffle_i64x2(odd01, odd23, 0xdd);
  __m512i start = _mm512_setzero_si512();
  MT_UNROLL
  for (int s = 0; s < 4; ++s) start = dot4(start, _mm512_set1_epi8(1), in.x[s]);
  in.start = minus(start);
  in.dx = twice(_mm256_loadu_ps(act.d + 2 * block));
  return in;
}

template <int R, int K, bool Full>
MT_AVX512_INLINE void q2_0_step(const Rows<R>& rows, int64_t at, const Tokens<K>& tokens,
                                int64_t block, int blocks, __m512 (&acc)[R][K]) {
  static constexpr auto code_index = code_bytes(18, 2);
  static constexpr auto scale_index = half_bytes(18, 0);
  Q20Input in[K];
  MT_UNROLL
  for (int t = 0; t < K; ++t) in[t] = q2_0_input(tokens.of[t], block);
  __m512i three = _mm512_set1_epi8(3);
  MT_UNROLL
  for (int r = 0; r < R; ++r) {
    const uint8_t* p = rows.w[r] + at;
    prefetch(p);
    Window v = window<Full>(p, 18, blocks);
    __m512i qs = pick(v, code_index), codes[4];
    MT_UNROLL
    for (int s = 0; s < 4; ++s)
      codes[s] = _mm512_and_si512(_mm512_srli_epi16(qs, static_cast<unsigned>(2 * s)), three);
    __m512 d = _mm512_cvtph_ps(_mm512_castsi512_si256(pick(v, scale_index)));
    MT_UNROLL
    for (int t = 0; t < K; ++t) {
      __m512i dot = in[t].start;
      MT_UNROLL
      for (int s = 0; s < 4; ++s) dot = dot4(dot, codes[s], in[t].x[s]);
      acc[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(d, in[t].dx), acc[r][t]);
    }
  }
}

template <Dtype, int R, int K>
MT_AVX512 void q2_0_rows(const Rows<R>& rows, const Tokens<K>& tokens, int64_t n, const Out& y) {
  __m512 acc[R][K];
  clear(acc);
  int64_t blocks = n / 64, b = 0;
  for (; b + 4 <= blocks; b += 4) q2_0_step<R, K, true>(rows, 18 * b, tokens, b, 4, acc);
  if (b < blocks)
    q2_0_step<R, K, false>(rows, 18 * b, tokens, b, static_cast<int>(blocks - b), acc);
  store(acc, y);
}

// ---- Q1_0: a bit is code 0 or 2, one too high ----
template <Dtype, int R, int K>
MT_AVX512 void q1_0_rows(const Rows<R>& rows, const Tokens<K>& tokens, int64_t n, const Out& y) {
  __m512 acc[R][K];
  clear(acc);
  __m512i two = _mm512_set1_epi8(2);
  for (int64_t b = 0; b < n / 128; ++b) {
    __m512i x[K][2], start[K][2];
    __m512 dx[K][2];
    MT_UNROLL
    for (int t = 0; t < K; ++t) MT_UNROLL
    for (int h = 0; h < 2; ++h) {
      x[t][h] = load64(tokens.of[t].q + 128 * b + 64 * h);
      start[t][h] = minus(dot4(_mm512_setzero_si512(), _mm512_set1_epi8(1), x[t][h]));
      const float* d = tokens.of[t].d + 4 * b + 2 * h;
      dx[t][h] = _mm512_insertf32x8(_mm512_set1_ps(d[0]), _mm256_set1_ps(d[1]), 1);
    }
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      const uint8_t* p = rows.w[r] + 18 * b;
      prefetch(p);
      __m512i codes[2] = {_mm512_maskz_mov_epi8(load_as<uint64_t>(p + 2), two),
                          _mm512_maskz_mov_epi8(load_as<uint64_t>(p + 10), two)};
      __m512 d = _mm512_cvtph_ps(_mm256_set1_epi16(load_as<short>(p)));
      MT_UNROLL
      for (int t = 0; t < K; ++t) {
        __m512 v = _mm512_setzero_ps();
        MT_UNROLL
        for (int h = 0; h < 2; ++h)
          v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot4(start[t][h], codes[h], x[t][h])), dx[t][h],
                              v);
        acc[r][t] = _mm512_fmadd_ps(v, d, acc[r][t]);
      }
    }
  }
  store(acc, y);
}

// ---- unquantised weights, f32 activations ----
template <Dtype T, int R, int K>
MT_AVX512 void plain_rows(const Rows<R>& rows, const Tokens<K>& tokens, int64_t n, const Out& y) {
  constexpr int size = T == Dtype::F32 ? 4 : 2;
  __m512 acc[R][K];
  clear(acc);
  for (int64_t i = 0; i < n; i += 16) {
    __m512 x[K];
    MT_UNROLL
    for (int t = 0; t < K; ++t) x[t] = _mm512_loadu_ps(tokens.of[t].x + i);
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      const uint8_t* p = rows.w[r] + size * i;
      prefetch(p);
      __m512 v;
      if constexpr (T == Dtype::F32) {
        v = _mm512_loadu_ps(reinterpret_cast<const float*>(p));
      } else {
        __m256i h = load32(p);
        if constexpr (T == Dtype::F16)
          v = _mm512_cvtph_ps(h);
        else
          v = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
      }
      MT_UNROLL
      for (int t = 0; t < K; ++t) acc[r][t] = _mm512_fmadd_ps(v, x[t], acc[r][t]);
    }
  }
  store(acc, y);
}

// Rest: the second of two terms.
template <bool Rest>
MT_AVX512 void quantise_term(const float* x, int64_t n, std::byte* blob) {
  QuantisedLayout layout = quantised_layout(n);
  quantise_padding(x, n, blob);
  __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t b = 0; b < n / 32; ++b) {
    __m512 v[2] = {_mm512_loadu_ps(x + 32 * b), _mm512_loadu_ps(x + 32 * b + 16)};
    __m512i largest = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(v[0]), magnitude),
                                       _mm512_and_si512(_mm512_castps_si512(v[1]), magnitude));
    float d, inverse;
    quantise_scale(_mm512_reduce_max_epu32(largest), d, inverse);
    if (Rest) d /= float{kSecondSteps};
    MT_UNROLL
    for (int h = 0; h < 2; ++h) {
      __m512i q = codes_of<Rest>(_mm512_mul_ps(v[h], _mm512_set1_ps(inverse)));
      if (inverse == 0.0f) q = _mm512_setzero_si512();
      _mm_storeu_si128(reinterpret_cast<__m128i*>(blob + layout.q + 32 * b + 16 * h),
                       _mm512_cvtepi32_epi8(q));
      float sum = d * static_cast<float>(_mm512_reduce_add_epi32(q));
      std::memcpy(blob + layout.sum + 8 * b + 4 * h, &sum, 4);
    }
    std::memcpy(blob + layout.d + 4 * b, &d, 4);
  }
}

}  // namespace

void avx512_quantise(const float* x, int64_t n, int terms, std::byte* blob) {
  quantise_term<false>(x, n, blob);
  if (terms == 2) quantise_term<true>(x, n, blob + quantised_layout(n).bytes);
}

bool avx512_has_rows_dot(Dtype dtype) {
  return reference_has_rows_dot(dtype) || is_lattice(dtype);
}

void avx512_rows_dot(Dtype dtype, const std::byte* bytes, int64_t row_bytes, int64_t rows,
                     const std::byte* q, int64_t q_bytes, int64_t tokens, int terms, int64_t n,
                     float* y, int64_t ldy) {
  if (info(dtype).block_length == 1) terms = 1;
  const Product p = {reinterpret_cast<const uint8_t*>(bytes),
                     row_bytes,
                     rows,
                     q,
                     q_bytes,
                     tokens,
                     terms,
                     n,
                     y,
                     ldy};
  switch (dtype) {
#define MT_CASE(T, FUNCTION)                                                         \
  case Dtype::T:                                                                     \
    return all_rows(p, [](const auto& r, const auto& t, int64_t k, const Out& out) { \
      FUNCTION<Dtype::T>(r, t, k, out);                                              \
    });
    MT_CASE(F32, plain_rows)
    MT_CASE(F16, plain_rows)
    MT_CASE(BF16, plain_rows)
    MT_CASE(Q4_0, small_rows)
    MT_CASE(Q4_1, small_rows)
    MT_CASE(Q5_0, small_rows)
    MT_CASE(Q5_1, small_rows)
    MT_CASE(IQ4_NL, small_rows)
    MT_CASE(MXFP4, small_rows)
    MT_CASE(Q8_0, q8_rows)
    MT_CASE(Q1_0, q1_0_rows)
    MT_CASE(Q2_0, q2_0_rows)
#undef MT_CASE
    case Dtype::Q2_K:
    case Dtype::Q3_K:
    case Dtype::Q4_K:
    case Dtype::Q5_K:
    case Dtype::Q6_K:
    case Dtype::IQ4_XS:
      return k_rows_dot(dtype, p);
    case Dtype::IQ2_XXS:
    case Dtype::IQ2_XS:
    case Dtype::IQ2_S:
    case Dtype::IQ3_XXS:
    case Dtype::IQ3_S:
      return iq_rows_dot(dtype, p);
    case Dtype::IQ1_S:
    case Dtype::I8:
    case Dtype::I16:
    case Dtype::I32:
    case Dtype::I64:
    case Dtype::F64:
    case Dtype::IQ1_M:
    case Dtype::TQ1_0:
    case Dtype::TQ2_0:
    case Dtype::NVFP4:
      return reference_rows_dot(dtype, bytes, row_bytes, rows, q, q_bytes, tokens, terms, n, y,
                                ldy);
  }
}

}  // namespace mt
