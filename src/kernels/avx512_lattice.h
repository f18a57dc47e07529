#pragma once
#include <array>

#include "dtype/grids.h"
#include "kernels/avx512_dot.h"

// Blocks of the lattice formats to codes, signs and scales. A code word's place in the table is
// looked up by vpermi2b, byte by byte of the 16-bit words and 64 places at once; vpmultishiftqb
// takes the words apart and a shuffle gives the magnitudes.
namespace mt::avx512 {

constexpr int iq_bytes(Dtype t) {
  if (t == Dtype::IQ2_XXS) return 66;
  if (t == Dtype::IQ2_XS) return 74;
  if (t == Dtype::IQ2_S) return 82;
  return t == Dtype::IQ3_XXS ? 98 : 110;
}
constexpr bool by_four(Dtype t) {  // weights of a word; else eight
  return t == Dtype::IQ3_XXS || t == Dtype::IQ3_S;
}

// A table of words, low bytes and high bytes apart.
template <int kWords>
struct alignas(64) Planes {
  uint8_t low[kWords], high[kWords];

  explicit Planes(const uint16_t (&words)[kWords]) {
    for (int i = 0; i < kWords; ++i) {
      low[i] = static_cast<uint8_t>(words[i]);
      high[i] = static_cast<uint8_t>(words[i] >> 8);
    }
  }
};
extern const Planes<256> iq2_xxs_words, iq3_xxs_words;
extern const Planes<512> iq2_xs_words, iq3_s_words;
extern const Planes<1024> iq2_s_words;

template <Dtype T>
const auto& words_of() {
  if constexpr (T == Dtype::IQ2_XXS) return iq2_xxs_words;
  if constexpr (T == Dtype::IQ2_XS) return iq2_xs_words;
  if constexpr (T == Dtype::IQ2_S) return iq2_s_words;
  if constexpr (T == Dtype::IQ3_XXS) return iq3_xxs_words;
  if constexpr (T == Dtype::IQ3_S) return iq3_s_words;
}

// plane[index]; the bits 8 and 9 of the index apart.
template <int kWords>
MT_AVX512_INLINE __m512i look_up(const uint8_t (&plane)[kWords], __m512i index, __mmask64 bit8,
                                 __mmask64 bit9) {
  const __mmask64 bit7 = _mm512_movepi8_mask(index);
  __m512i found[kWords / 256];
  MT_UNROLL
  for (int i = 0; i < kWords / 256; ++i) {
    const uint8_t* p = plane + 256 * i;
    const __m512i low = _mm512_permutex2var_epi8(load64(p), index, load64(p + 64));
    const __m512i high = _mm512_permutex2var_epi8(load64(p + 128), index, load64(p + 192));
    found[i] = _mm512_mask_mov_epi8(low, bit7, high);
  }
  if constexpr (kWords == 256) return found[0];
  if constexpr (kWords >= 512) found[0] = _mm512_mask_mov_epi8(found[0], bit8, found[1]);
  if constexpr (kWords == 1024) {
    found[2] = _mm512_mask_mov_epi8(found[2], bit8, found[3]);
    found[0] = _mm512_mask_mov_epi8(found[0], bit9, found[2]);
  }
  return found[0];
}

// The words of group g of 64 weights, each in a lane of its own: where their bytes are in the low
// and the high results.
template <bool kFour>
constexpr std::array<uint8_t, 64> lanes_of(int g) {
  std::array<uint8_t, 64> index{};
  constexpr int width = kFour ? 4 : 8, count = 64 / width;
  for (int i = 0; i < count; ++i) {
    index[size_t(width * i)] = static_cast<uint8_t>(count * g + i);
    index[size_t(width * i + 1)] = static_cast<uint8_t>(64 + count * g + i);
  }
  return index;
}
template <bool kFour>
constexpr std::array<std::array<uint8_t, 64>, 4> all_lanes() {
  return {lanes_of<kFour>(0), lanes_of<kFour>(1), lanes_of<kFour>(2), lanes_of<kFour>(3)};
}
// The bit at which each weight's number begins in its 64 bits.
template <bool kFour>
constexpr std::array<uint8_t, 64> first_bits() {
  std::array<uint8_t, 64> at{};
  for (int i = 0; i < 64; ++i)
    at[size_t(i)] = static_cast<uint8_t>(kFour ? 32 * (i / 4 % 2) + 4 * (i % 4) : 2 * (i % 8));
  return at;
}

template <Dtype T>
MT_AVX512_INLINE __m512i magnitudes() {
  __m128i v = _mm_setr_epi8(8, 25, 43, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  if constexpr (T == Dtype::IQ3_XXS)
    v = _mm_setr_epi8(4, 12, 20, 28, 36, 44, 52, 62, 0, 0, 0, 0, 0, 0, 0, 0);
  if constexpr (T == Dtype::IQ3_S)
    v = _mm_setr_epi8(1, 3, 5, 7, 9, 11, 13, 15, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm512_broadcast_i32x4(v);
}

// Seven signs a byte to eight, the number of minus signs even.
MT_AVX512_INLINE __m256i eight_signs_of(__m256i seven) {
  const __m256i odd = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i low = _mm256_shuffle_epi8(odd, _mm256_and_si256(seven, nibble));
  const __m256i high =
      _mm256_shuffle_epi8(odd, _mm256_and_si256(_mm256_srli_epi16(seven, 4), nibble));
  return _mm256_or_si256(seven, _mm256_xor_si256(low, high));
}
// From eight words of 4 x 7 bits.
MT_AVX512_INLINE __m256i signs_of_words(__m256i words) {
  const __m512i at = _mm512_set1_epi64(0x150e0700);
  const __m512i seven = _mm512_and_si512(
      _mm512_multishift_epi64_epi8(at, _mm512_cvtepu32_epi64(words)), _mm512_set1_epi8(127));
  return eight_signs_of(_mm512_cvtepi64_epi32(seven));
}

// 256 weights: scale[i / 16] * (minus ? -code : code).
struct LatticeBlock {
  __m512i codes[4];
  __mmask64 minus[4];
  __m512 scale;
};

// Nibbles of n bytes, the low one first, as 2 n numbers.
MT_AVX512_INLINE __m128i nibbles_of(__m128i bytes) {
  const __m128i mask = _mm_set1_epi8(15);
  return _mm_unpacklo_epi8(_mm_and_si128(bytes, mask),
                           _mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
}

template <Dtype T>
MT_AVX512_INLINE LatticeBlock lattice_block(const uint8_t* p) {
  LatticeBlock block;
  __m512i index = _mm512_setzero_si512();
  __mmask64 bit8 = 0, bit9 = 0;
  alignas(32) uint64_t signs[4];
  const float d = half(p);
  if constexpr (T == Dtype::IQ2_XXS) {
    // Pairs of 32-bit words: four indices; signs and scale.
    const __m512i pairs = load64(p + 2);
    index = _mm512_castsi256_si512(_mm512_cvtepi64_epi32(pairs));
    const __m256i rest = _mm512_cvtepi64_epi32(_mm512_srli_epi64(pairs, 32));
    _mm256_store_si256(reinterpret_cast<__m256i*>(signs), signs_of_words(rest));
    const __m256 s = _mm256_cvtepi32_ps(_mm256_srli_epi32(rest, 28));
    block.scale =
        twice(_mm256_mul_ps(_mm256_add_ps(s, _mm256_set1_ps(0.5f)), _mm256_set1_ps(0.25f * d)));
  } else if constexpr (T == Dtype::IQ2_XS) {
    const __m512i codes = load64(p + 2);
    index = _mm512_castsi256_si512(_mm512_cvtepi16_epi8(codes));
    bit8 = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(256));
    _mm256_store_si256(reinterpret_cast<__m256i*>(signs),
                       eight_signs_of(_mm512_cvtepi16_epi8(_mm512_srli_epi16(codes, 9))));
  } else if constexpr (T == Dtype::IQ2_S) {
    index = _mm512_castsi256_si512(load32(p + 2));
    std::memcpy(signs, p + 34, 32);
    const uint64_t high = load_as<uint64_t>(p + 66);
    bit8 = _pext_u64(high, 0x5555555555555555u);
    bit9 = _pext_u64(high, 0xaaaaaaaaaaaaaaaau);
  } else {
    index = load64(p + 2);
  }
  if constexpr (T == Dtype::IQ2_XS || T == Dtype::IQ2_S) {
    const __m128i s =
        nibbles_of(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + iq_bytes(T) - 8)));
    block.scale = _mm512_mul_ps(
        _mm512_add_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(s)), _mm512_set1_ps(0.5f)),
        _mm512_set1_ps(0.25f * d));
  }
  if constexpr (T == Dtype::IQ3_XXS) {
    const __m256i rest = load32(p + 66);
    _mm256_store_si256(reinterpret_cast<__m256i*>(signs), signs_of_words(rest));
    const __m256 s = _mm256_cvtepi32_ps(_mm256_srli_epi32(rest, 28));
    block.scale =
        twice(_mm256_mul_ps(_mm256_add_ps(s, _mm256_set1_ps(0.5f)), _mm256_set1_ps(0.5f * d)));
  } else if constexpr (T == Dtype::IQ3_S) {
    bit8 = load_as<uint64_t>(p + 66);
    std::memcpy(signs, p + 74, 32);
    const __m128i s = nibbles_of(_mm_cvtsi32_si128(load_as<int>(p + 106)));
    const __m256 odd = _mm256_cvtepi32_ps(
        _mm256_add_epi32(_mm256_slli_epi32(_mm256_cvtepu8_epi32(s), 1), _mm256_set1_epi32(1)));
    block.scale = twice(_mm256_mul_ps(odd, _mm256_set1_ps(d)));
  }

  static constexpr auto lanes = all_lanes<by_four(T)>();
  static constexpr auto bits = first_bits<by_four(T)>();
  const __m512i low = look_up(words_of<T>().low, index, bit8, bit9);
  const __m512i high = look_up(words_of<T>().high, index, bit8, bit9);
  const __m512i mask = _mm512_set1_epi8(by_four(T) ? 7 : 3);
  MT_UNROLL
  for (int g = 0; g < 4; ++g) {
    const __m512i words = _mm512_permutex2var_epi8(low, load(lanes[size_t(g)]), high);
    const __m512i numbers = _mm512_and_si512(_mm512_multishift_epi64_epi8(load(bits), words), mask);
    block.codes[g] = _mm512_shuffle_epi8(magnitudes<T>(), numbers);
    block.minus[g] = signs[g];
  }
  return block;
}

// The codes of group g with their signs.
MT_AVX512_INLINE __m512i signed_codes(const LatticeBlock& block, int g) {
  const __m512i codes = block.codes[g];
  return _mm512_mask_sub_epi8(codes, block.minus[g], _mm512_setzero_si512(), codes);
}

}  // namespace mt::avx512
