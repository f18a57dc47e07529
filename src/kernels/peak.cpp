#include "kernels/peak.h"

#include "kernels/attributes.h"
#include "kernels/kernels.h"
#ifdef __x86_64__
#include "kernels/amx.h"
#include "kernels/avx512_intrinsics.h"
#include "kernels/tile_config.h"
#else
#include <arm_neon.h>
#endif

namespace mt {
namespace {

// Twelve sums: latency times throughput of every unit met so far, and room in 16 registers.
constexpr int kSums = 12;

// Makes the compiler believe that the register is used and changed: sums that began alike would be
// computed once.
#ifdef __x86_64__
#define MT_OPAQUE(v) __asm__ volatile("" : "+v"(v))
#else
#define MT_OPAQUE(v) __asm__ volatile("" : "+w"(v))
#endif

// A function that takes `next`, an expression of sum[i] and x with `lanes` multiply-adds, kSums
// times a round.
#define MT_PEAK(name, isa, vector, ones, lanes, next)  \
  isa int64_t name(int64_t rounds) {                   \
    vector sum[kSums] = {};                            \
    auto x = ones;                                     \
    MT_UNROLL                                          \
    for (int i = 0; i < kSums; ++i) MT_OPAQUE(sum[i]); \
    for (int64_t r = 0; r < rounds; ++r) {             \
      MT_UNROLL                                        \
      for (int i = 0; i < kSums; ++i) {                \
        MT_OPAQUE(x);                                  \
        sum[i] = next;                                 \
      }                                                \
    }                                                  \
    MT_UNROLL                                          \
    for (int i = 0; i < kSums; ++i) MT_OPAQUE(sum[i]); \
    return rounds * kSums * lanes;                     \
  }

#ifdef __x86_64__
MT_PEAK(f32_avx2, MT_AVX2, __m256, _mm256_set1_ps(1.0f), 8, _mm256_fmadd_ps(x, x, sum[i]))
MT_PEAK(f32_avx512, MT_AVX512F, __m512, _mm512_set1_ps(1.0f), 16, _mm512_fmadd_ps(x, x, sum[i]))
MT_PEAK(bf16_avx512, MT_AVX512BF16, __m512, _mm512_set1_epi32(0x3f803f80), 32,
        _mm512_dpbf16_ps(sum[i], reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(x)))
// Without VNNI a product of bytes takes three instructions.
MT_PEAK(int8_avx2, MT_AVX2, __m256i, _mm256_set1_epi8(1), 32,
        _mm256_add_epi32(sum[i],
                         _mm256_madd_epi16(_mm256_maddubs_epi16(x, x), _mm256_set1_epi16(1))))
MT_PEAK(int8_vnni, MT_AVX512, __m512i, _mm512_set1_epi8(1), 64, _mm512_dpbusd_epi32(sum[i], x, x))
#else
MT_PEAK(f32_neon, , float32x4_t, vdupq_n_f32(1.0f), 4, vfmaq_f32(sum[i], x, x))
#endif

#undef MT_PEAK
#undef MT_OPAQUE

#ifdef __x86_64__
// ---- tiles ----
// All 64 bytes are given as the operand: g++ 12's _tile_loadconfig names the address alone and
// loses the stores that fill it.
#define MT_AMX __attribute__((target("amx-tile,amx-int8,amx-bf16")))
MT_AMX void load_tiles(const TileConfig& config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
}

MT_AMX int64_t int8_amx(int64_t rounds) {
  load_tiles(TileConfig(TileConfig::kRows, TileConfig::kRows));
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbusd(0, 4, 5);
    _tile_dpbusd(1, 4, 5);
    _tile_dpbusd(2, 4, 5);
    _tile_dpbusd(3, 4, 5);
  }
  _tile_release();
  return rounds * 4 * 16 * 16 * 64;
}

MT_AMX int64_t bf16_amx(int64_t rounds) {
  load_tiles(TileConfig(TileConfig::kRows, TileConfig::kRows));
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_release();
  return rounds * 4 * 16 * 16 * 32;
}
#undef MT_AMX
#endif

}  // namespace

std::vector<Peak> available_peaks() {
  std::vector<Peak> peaks;
  std::string_view best;
  for (const Kernels* table : available_kernels()) best = table->name;
  if (best == "reference") return peaks;
#ifdef __x86_64__
  const bool avx512 = best.starts_with("avx512"), vnni = avx512 && best != "avx512f";
  peaks.push_back({"f32 fma", avx512 ? f32_avx512 : f32_avx2});
  if (best == "avx512bf16" || best == "avx512amx") peaks.push_back({"bf16 dot", bf16_avx512});
  peaks.push_back(vnni ? Peak{"int8 vnni", int8_vnni} : Peak{"int8 avx2", int8_avx2});
  if (amx_runs()) {
    peaks.push_back({"bf16 amx", bf16_amx});
    peaks.push_back({"int8 amx", int8_amx});
  }
#else
  peaks.push_back({"f32 fma", f32_neon});
#endif
  return peaks;
}

}  // namespace mt
