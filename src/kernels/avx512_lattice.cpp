#include "kernels/avx512_lattice.h"
#include "kernels/tables.h"

// The lattice formats with VBMI: dot products and decoding.
namespace mt::avx512 {

// Filled when the program starts, from arrays that stand in the file (dtype/grids.cpp): the order
// of the files does not matter. Nothing may decode before main.
const Planes<256> iq2_xxs_words(kGridIq2Xxs);
const Planes<512> iq2_xs_words(kGridIq2Xs);
const Planes<1024> iq2_s_words(kGridIq2S);
const Planes<256> iq3_xxs_words(kGridIq3Xxs);
const Planes<512> iq3_s_words(kGridIq3S);

namespace {

template <Dtype T, int R, int K>
MT_AVX512 void iq_rows(const Rows<R>& rows, const Tokens<K>& tokens, int64_t n, const Out& y) {
  __m512 acc[R][K];
  clear(acc);
  const __m512i lanes[4] = {runs_of_4(0, 1, 2, 3), runs_of_4(4, 5, 6, 7), runs_of_4(8, 9, 10, 11),
                            runs_of_4(12, 13, 14, 15)};
  const __m512i zero = _mm512_setzero_si512();
  for (int64_t b = 0; b < n / 256; ++b) {
    __m512 dx[K];
    MT_UNROLL
    for (int t = 0; t < K; ++t) dx[t] = twice(_mm256_loadu_ps(tokens.of[t].d + 8 * b));
    MT_UNROLL
    for (int r = 0; r < R; ++r) {
      const uint8_t* p = rows.w[r] + b * iq_bytes(T);
      for (int line = 0; line < iq_bytes(T); line += 64) prefetch(p + line);
      const LatticeBlock block = lattice_block<T>(p);
      MT_UNROLL
      for (int t = 0; t < K; ++t) {
        const __m512 scale = _mm512_mul_ps(block.scale, dx[t]);
        MT_UNROLL
        for (int g = 0; g < 4; ++g) {
          const __m512i q = load64(tokens.of[t].q + 256 * b + 64 * g);
          const __m512i x = _mm512_mask_sub_epi8(q, block.minus[g], zero, q);
          const __m512 dot = _mm512_cvtepi32_ps(dot4(zero, block.codes[g], x));
          acc[r][t] = _mm512_fmadd_ps(dot, to_lanes(lanes[g], scale), acc[r][t]);
        }
      }
    }
  }
  store(acc, y);
}

template <Dtype T>
MT_AVX512 void decode(const uint8_t* p, float* y, int64_t n) {
  for (int64_t b = 0; b < n / 256; ++b, p += iq_bytes(T)) {
    const LatticeBlock block = lattice_block<T>(p);
    alignas(64) float scale[16];
    _mm512_store_ps(scale, block.scale);
    MT_UNROLL
    for (int g = 0; g < 4; ++g) {
      const __m512i codes = signed_codes(block, g);
      const __m128i part[4] = {_mm512_castsi512_si128(codes), _mm512_extracti32x4_epi32(codes, 1),
                               _mm512_extracti32x4_epi32(codes, 2),
                               _mm512_extracti32x4_epi32(codes, 3)};
      MT_UNROLL
      for (int i = 0; i < 4; ++i, y += 16)
        _mm512_storeu_ps(y, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(part[i])),
                                          _mm512_set1_ps(scale[4 * g + i])));
    }
  }
}

}  // namespace

void iq_rows_dot(Dtype dtype, const Product& product) {
#define MT_CASE(T)                                                                \
  if (dtype == Dtype::T)                                                          \
    all_rows(product, [](const auto& r, const auto& t, int64_t n, const Out& y) { \
      iq_rows<Dtype::T>(r, t, n, y);                                              \
    });
  MT_CASE(IQ2_XXS)
  MT_CASE(IQ2_XS)
  MT_CASE(IQ2_S)
  MT_CASE(IQ3_XXS)
  MT_CASE(IQ3_S)
#undef MT_CASE
}

}  // namespace mt::avx512

namespace mt {

void avx512_vbmi_decode_row(Dtype dtype, const std::byte* src, float* dst, int64_t n) {
  const auto* p = reinterpret_cast<const uint8_t*>(src);
  if (dtype == Dtype::IQ2_XXS) return avx512::decode<Dtype::IQ2_XXS>(p, dst, n);
  if (dtype == Dtype::IQ2_XS) return avx512::decode<Dtype::IQ2_XS>(p, dst, n);
  if (dtype == Dtype::IQ2_S) return avx512::decode<Dtype::IQ2_S>(p, dst, n);
  if (dtype == Dtype::IQ3_XXS) return avx512::decode<Dtype::IQ3_XXS>(p, dst, n);
  if (dtype == Dtype::IQ3_S) return avx512::decode<Dtype::IQ3_S>(p, dst, n);
  avx512_decode_row(dtype, src, dst, n);
}

}  // namespace mt
