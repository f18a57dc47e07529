#include "kernels/avx512_dot.h"

// The dot products of the formats with 256 weights a block and quantised sub-scales.
namespace mt::avx512 {
namespace {

// ---- blocks of 256: four groups of 64 codes, each lane of them under one sub-scale ----
constexpr int k_bytes(Dtype t) {
  if (t == Dtype::Q2_K) return 84;
  if (t == Dtype::Q3_K) return 110;
  if (t == Dtype::Q4_K) return 144;
  if (t == Dtype::Q5_K) return 176;
  return t == Dtype::Q6_K ? 210 : 136;
}
constexpr int k_offset(Dtype t) {
  if (t == Dtype::Q3_K) return 4;
  if (t == Dtype::Q6_K) return 32;
  return t == Dtype::IQ4_XS ? 128 : 0;
}
constexpr bool two_bits(Dtype t) {
  return t == Dtype::Q2_K || t == Dtype::Q3_K;
}

// The activations in the order in which group g of the codes lies, and each lane's sub-scale.
template <Dtype T>
MT_AVX512_INLINE void arrange(const int8_t* q, __m512i (&x)[4], __m512i (&lanes)[4]) {
  __m512i v[4] = {load64(q), load64(q + 64), load64(q + 128), load64(q + 192)};
  if constexpr (two_bits(T)) {
    // 32 bytes hold 128 weights: bits s of the 64 bytes are weights 32s.. and 128 + 32s..
    x[0] = _mm512_shuffle_i64x2(v[0], v[2], 0x44);
    x[1] = _mm512_shuffle_i64x2(v[0], v[2], 0xee);
    x[2] = _mm512_shuffle_i64x2(v[1], v[3], 0x44);
    x[3] = _mm512_shuffle_i64x2(v[1], v[3], 0xee);
    MT_UNROLL
    for (int s = 0; s < 4; ++s) lanes[s] = runs_of_4(2 * s, 2 * s + 1, 8 + 2 * s, 9 + 2 * s);
  } else if constexpr (T == Dtype::Q6_K) {
    MT_UNROLL
    for (int g = 0; g < 4; ++g) {
      x[g] = v[g];
      lanes[g] = runs_of_4(4 * g, 4 * g + 1, 4 * g + 2, 4 * g + 3);
    }
  } else if constexpr (T == Dtype::IQ4_XS) {
    // Groups 0 and 1 are the nibbles of the same bytes, 16 of each of four sub-blocks.
    MT_UNROLL
    for (int h = 0; h < 2; ++h) {
      x[2 * h] = _mm512_shuffle_i64x2(v[2 * h], v[2 * h + 1], 0x88);
      x[2 * h + 1] = _mm512_shuffle_i64x2(v[2 * h], v[2 * h + 1], 0xdd);
      lanes[2 * h] = lanes[2 * h + 1] = runs_of_4(4 * h, 4 * h + 1, 4 * h + 2, 4 * h + 3);
    }
  } else {
    // Q4_K, Q5_K: nibbles of 32 bytes are two sub-blocks of 32.
    MT_UNROLL
    for (int h = 0; h < 2; ++h) {
      x[2 * h] = _mm512_shuffle_i64x2(v[2 * h], v[2 * h + 1], 0x44);
      x[2 * h + 1] = _mm512_shuffle_i64x2(v[2 * h], v[2 * h + 1], 0xee);
      lanes[2 * h] = runs_of_4(4 * h, 4 * h, 4 * h + 2, 4 * h + 2);
      lanes[2 * h + 1] = runs_of_4(4 * h + 1, 4 * h + 1, 4 * h + 3, 4 * h + 3);
    }
  }
}

template <Dtype T>
MT_AVX512_INLINE void k_codes(const uint8_t* p, __m512i (&codes)[4]) {
  if constexpr (two_bits(T)) {
    __m512i qs = load64(p + (T == Dtype::Q2_K ? 16 : 32)), three = _mm512_set1_epi8(3);
    MT_UNROLL
    for (int s = 0; s < 4; ++s)
      codes[s] = _mm512_and_si512(_mm512_srli_epi16(qs, static_cast<unsigned>(2 * s)), three);
    if constexpr (T == Dtype::Q3_K) {
      __m512i high = _mm512_broadcast_i64x4(load32(p));
      MT_UNROLL
      for (int s = 0; s < 4; ++s) {
        __m512i bit = _mm512_inserti64x4(_mm512_set1_epi8(static_cast<char>(1 << s)),
                                         _mm256_set1_epi8(static_cast<char>(16 << s)), 1);
        __mmask64 set = _mm512_test_epi8_mask(high, bit);
        codes[s] = _mm512_mask_add_epi8(codes[s], set, codes[s], _mm512_set1_epi8(4));
      }
    }
  } else if constexpr (T == Dtype::Q6_K) {
    __m512i left = _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2);
    __m512i right = _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2);
    __m512i mask = _mm512_set1_epi8(0x30);
    MT_UNROLL
    for (int h = 0; h < 2; ++h) {
      __m512i ql = load64(p + 64 * h);
      __m512i qh = _mm512_broadcast_i64x4(load32(p + 128 + 32 * h));
      // (a & mask) | b
      codes[2 * h] =
          _mm512_ternarylogic_epi64(_mm512_sllv_epi64(qh, left), mask, low_nibbles(ql), 0xea);
      codes[2 * h + 1] =
          _mm512_ternarylogic_epi64(_mm512_srlv_epi64(qh, right), mask, high_nibbles(ql), 0xea);
    }
  } else {
    constexpr int qs_at = T == Dtype::Q4_K ? 16 : T == Dtype::Q5_K ? 48 : 8;
    MT_UNROLL
    for (int h = 0; h < 2; ++h) {
      __m512i qs = load64(p + qs_at + 64 * h);
      codes[2 * h] = low_nibbles(qs);
      codes[2 * h + 1] = high_nibbles(qs);
    }
    if constexpr (T == Dtype::Q5_K) {
      __m512i fifth = _mm512_broadcast_i64x4(load32(p + 16));
      MT_UNROLL
      for (int g = 0; g < 4; ++g) {
        int sub = g / 2 * 4 + g % 2;
        __m512i bit = _mm512_inserti64x4(_mm512_set1_epi8(static_cast<char>(1 << sub)),
                                         _mm256_set1_epi8(static_cast<char>(4 << sub)), 1);
        __mmask64 set = _mm512_test_epi8_mask(fifth, bit);
        codes[g] = _mm512_mask_add_epi8(codes[g], set, codes[g], _mm512_set1_epi8(16));
      }
    } else if constexpr (T == Dtype::IQ4_XS) {
      MT_UNROLL
      for (int g = 0; g < 4; ++g) codes[g] = _mm512_shuffle_epi8(byte_table(iq4_values), codes[g]);
    }
  }
}

// Sub-scales times dx, in lanes; takes the mins' part off acc.
template <Dtype T>
MT_AVX512_INLINE __m512 k_scales(const uint8_t* p, __m512 dx, __m512 sums, __m512& acc) {
  if constexpr (T == Dtype::Q2_K) {
    __m512i packed = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    __m512 min = _mm512_cvtepi32_ps(_mm512_srli_epi32(packed, 4));
    min = _mm512_mul_ps(min, _mm512_set1_ps(half(p + 82)));
    acc = _mm512_fnmadd_ps(min, sums, acc);
    __m512 scale = _mm512_cvtepi32_ps(_mm512_and_si512(packed, _mm512_set1_epi32(15)));
    return _mm512_mul_ps(scale, _mm512_mul_ps(dx, _mm512_set1_ps(half(p + 80))));
  } else if constexpr (T == Dtype::Q3_K) {
    uint64_t first, second;
    unpack_k3_scales(p + 96, first, second);
    __m128i packed = _mm_set_epi64x(static_cast<int64_t>(second), static_cast<int64_t>(first));
    __m512i scale = _mm512_sub_epi32(_mm512_cvtepu8_epi32(packed), _mm512_set1_epi32(32));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(scale),
                         _mm512_mul_ps(dx, _mm512_set1_ps(half(p + 108))));
  } else if constexpr (T == Dtype::Q6_K) {
    __m512i scale =
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 192)));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(scale),
                         _mm512_mul_ps(dx, _mm512_set1_ps(half(p + 208))));
  } else if constexpr (T == Dtype::IQ4_XS) {
    __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(load_as<int>(p + 4)),
                                    _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(load_as<uint16_t>(p + 2)),
                                     _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    low = _mm256_and_si256(low, _mm256_set1_epi32(15));
    high = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
    __m256 scale =
        _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32)));
    __m256 d = _mm256_mul_ps(_mm512_castps512_ps256(dx), _mm256_set1_ps(half(p)));
    return _mm512_castps256_ps512(_mm256_mul_ps(scale, d));
  } else {
    // Bytes 0-3 d and dmin, then a, b, c of four bytes each (unpack_k4_scales). Scales go to the
    // lower lanes, mins to the upper, whose sums are the 32-weight ones.
    __m128i head = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    __m128i low = _mm_shuffle_epi32(head, 0xed);
    __m128i high = _mm_shuffle_epi8(
        head, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    low = _mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4));
    low = _mm_and_si128(low, _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    high = _mm_and_si128(_mm_srli_epi16(high, 2), _mm_set1_epi8(0x30));
    __m512 both = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_or_si128(low, high)));
    __m256i halves = _mm256_shuffle_epi8(
        _mm256_broadcastsi128_si256(head),
        _mm256_setr_epi16(0x100, 0x100, 0x100, 0x100, 0x100, 0x100, 0x100, 0x100, 0x302, 0x302,
                          0x302, 0x302, 0x302, 0x302, 0x302, 0x302));
    __m512 d = _mm512_cvtph_ps(halves);
    both = _mm512_mul_ps(both, d);
    acc = _mm512_fnmadd_ps(both, sums, acc);
    return _mm512_mul_ps(both, dx);
  }
}

// What a block takes of one token, in lanes.
template <Dtype T>
struct KInput {
  __m512i x[4], start[4];
  __m512 dx, sums;
};
template <Dtype T>
MT_AVX512_INLINE KInput<T> k_input(const Activations& act, int64_t b, __m512i (&lanes)[4]) {
  constexpr bool by_16 = two_bits(T) || T == Dtype::Q6_K;
  KInput<T> in;
  arrange<T>(act.q + 256 * b, in.x, lanes);
  MT_UNROLL
  for (int g = 0; g < 4; ++g) in.start[g] = _mm512_setzero_si512();
  if constexpr (k_offset(T) != 0) {
    __m512i offset = _mm512_set1_epi8(static_cast<char>(k_offset(T)));
    MT_UNROLL
    for (int g = 0; g < 4; ++g) in.start[g] = minus(dot4(in.start[g], offset, in.x[g]));
  }
  if constexpr (T == Dtype::IQ4_XS) {  // its groups are summed in pairs
    in.start[0] = _mm512_add_epi32(in.start[0], in.start[1]);
    in.start[2] = _mm512_add_epi32(in.start[2], in.start[3]);
  }
  const __m256 dx = _mm256_loadu_ps(act.d + 8 * b);
  in.dx = by_16 ? twice(dx) : _mm512_castps256_ps512(dx);
  in.sums = _mm512_setzero_ps();
  if constexpr (T == Dtype::Q2_K) in.sums = _mm512_loadu_ps(act.sum + 16 * b);
  if constexpr (T == Dtype::Q4_K || T == Dtype::Q5_K) {
    __m512 s = _mm512_loadu_ps(act.sum + 16 * b);
    s = _mm512_add_ps(s, _mm512_permute_ps(s, 0xb1));  // each 16 and its neighbour
    __m512i even = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 4, 6, 8, 10, 12, 14);
    in.sums = _mm512_maskz_permutexvar_ps(0xff00, even, s);
  }
  return in;
}

// Two: tokens are pairs of terms, whose sums of a group are one before they are scaled; it becomes
// the second's.
template <Dtype T, bool Two, int R, int K>
MT_AVX512 void k_rows(const Rows<R>& rows, const Tokens<K>& tokens, int64_t n, const Out& y) {
  __m512 acc[R][K];
  clear(acc);
  for (int64_t b = 0; b < n / 256; ++b) {
    KInput<T> in[K];
    __m512i lanes[4];
    MT_UNROLL
    for (int t = 0; t < K; ++t) in[t] = k_input<T>(tokens.of[t], b, lanes);
    MT_UNROLL
    for (int t = 1; Two && t < K; t += 2) MT_UNROLL
    for (int g = 0; g < 4; ++g)
      in[t].start[g] =
          _mm512_add_epi32(in[t].start[g], _mm512_slli_epi32(in[t - 1].start[g], kSecondShift));
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      const uint8_t* p = rows.w[r] + b * k_bytes(T);
      for (int line = 0; line < k_bytes(T); line += 64) prefetch(p + line);
      __m512i codes[4];
      k_codes<T>(p, codes);
      MT_UNROLL
      for (int t = Two ? 1 : 0; t < K; t += Two ? 2 : 1) {
        __m512 scale = k_scales<T>(p, in[t].dx, in[t].sums, acc[r][t]);
        constexpr int step = T == Dtype::IQ4_XS ? 2 : 1;
        MT_UNROLL
        for (int g = 0; g < 4; g += step) {
          __m512i dot = dot4(in[t].start[g], codes[g], in[t].x[g]);
          if constexpr (step == 2) dot = dot4(dot, codes[g + 1], in[t].x[g + 1]);
          if constexpr (Two) {
            __m512i first = dot4(_mm512_setzero_si512(), codes[g], in[t - 1].x[g]);
            dot = _mm512_add_epi32(dot, _mm512_slli_epi32(first, kSecondShift));
          }
          acc[r][t] =
              _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), to_lanes(lanes[g], scale), acc[r][t]);
        }
      }
    }
  }
  store(acc, y);
}

}  // namespace

void k_rows_dot(Dtype dtype, const Product& product) {
#define MT_CASE(T)                                                                \
  if (dtype == Dtype::T)                                                          \
    all_rows(product, [](const auto& r, const auto& t, int64_t n, const Out& y) { \
      k_rows<Dtype::T, false>(r, t, n, y);                                        \
    });
  if (dtype == Dtype::Q6_K && product.terms == 2)
    return all_rows(product, [](const auto& r, const auto& t, int64_t n, const Out& y) {
      k_rows<Dtype::Q6_K, true>(r, t, n, y);
    });
  MT_CASE(Q2_K)
  MT_CASE(Q3_K)
  MT_CASE(Q4_K)
  MT_CASE(Q5_K)
  MT_CASE(Q6_K)
  MT_CASE(IQ4_XS)
#undef MT_CASE
}

}  // namespace mt::avx512
