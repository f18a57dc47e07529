// Decoding of the IQ1, IQ2 and IQ3 formats: groups of 4 or 8 weights are words of a fixed code.
#include "dtype/blocks.h"
#include "dtype/codec.h"
#include "dtype/grids.h"
#include "dtype/half.h"

namespace mt {
namespace {

void put_iq2_word(float* y, float scale, uint16_t word, uint8_t signs) {
  for (int i = 0; i < 8; ++i) {
    const float value = scale * kIq2Magnitudes[word >> (2 * i) & 3];
    y[i] = (signs >> i & 1) != 0 ? -value : value;
  }
}

void put_iq1_word(float* y, float scale, uint16_t word, float shift) {
  for (int i = 0; i < 8; ++i) {
    y[i] = scale * (static_cast<float>((word >> (2 * i) & 3) - 1) + shift);
  }
}

}  // namespace

void decode_iq2_xxs(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::IQ2_XXS, 256>(src, dst, n, [](const block::IQ2_XXS& b, float* y) {
    const float d = half_value(b.d);
    for (int sub = 0; sub < 8; ++sub) {
      const uint32_t words = b.qs[sub][0], rest = b.qs[sub][1];
      const float scale = d * (0.5f + static_cast<float>(rest >> 28)) * 0.25f;
      for (int g = 0; g < 4; ++g) {
        put_iq2_word(y + 32 * sub + 8 * g, scale, kGridIq2Xxs[words >> (8 * g) & 255],
                     eight_signs(rest >> (7 * g) & 127));
      }
    }
  });
}

void decode_iq2_xs(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::IQ2_XS, 256>(src, dst, n, [](const block::IQ2_XS& b, float* y) {
    const float d = half_value(b.d);
    for (int g = 0; g < 32; ++g) {
      const int s = b.scales[g / 4] >> (4 * (g / 2 % 2)) & 15;
      const float scale = d * (0.5f + static_cast<float>(s)) * 0.25f;
      const uint16_t code = b.qs[g];
      put_iq2_word(y + 8 * g, scale, kGridIq2Xs[code & 511], eight_signs(code >> 9));
    }
  });
}

void decode_iq2_s(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::IQ2_S, 256>(src, dst, n, [](const block::IQ2_S& b, float* y) {
    const float d = half_value(b.d);
    for (int g = 0; g < 32; ++g) {
      const int s = b.scales[g / 4] >> (4 * (g / 2 % 2)) & 15;
      const float scale = d * (0.5f + static_cast<float>(s)) * 0.25f;
      const int high = b.qh[g / 4] >> (2 * (g % 4)) & 3;
      put_iq2_word(y + 8 * g, scale, kGridIq2S[b.qs[g] | high << 8], b.signs[g]);
    }
  });
}

void decode_iq3_xxs(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::IQ3_XXS, 256>(src, dst, n, [](const block::IQ3_XXS& b, float* y) {
    const float d = half_value(b.d);
    for (int g = 0; g < 64; ++g) {
      const uint32_t rest = b.signs[g / 8];
      const float scale = d * (0.5f + static_cast<float>(rest >> 28)) * 0.5f;
      const int signs = eight_signs(rest >> (7 * (g / 2 % 4)) & 127) >> (4 * (g % 2));
      const uint16_t word = kGridIq3Xxs[b.qs[g]];
      for (int i = 0; i < 4; ++i) {
        const float value = scale * kIq3XxsMagnitudes[word >> (4 * i) & 7];
        y[4 * g + i] = (signs >> i & 1) != 0 ? -value : value;
      }
    }
  });
}

void decode_iq3_s(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::IQ3_S, 256>(src, dst, n, [](const block::IQ3_S& b, float* y) {
    const float d = half_value(b.d);
    for (int g = 0; g < 64; ++g) {
      const int s = b.scales[g / 16] >> (4 * (g / 8 % 2)) & 15;
      const float scale = d * static_cast<float>(1 + 2 * s);
      const int high = b.qh[g / 8] >> (g % 8) & 1;
      const int signs = b.signs[g / 2] >> (4 * (g % 2));
      const uint16_t word = kGridIq3S[b.qs[g] | high << 8];
      for (int i = 0; i < 4; ++i) {
        const float value = scale * static_cast<float>(2 * (word >> (4 * i) & 7) + 1);
        y[4 * g + i] = (signs >> i & 1) != 0 ? -value : value;
      }
    }
  });
}

void decode_iq1_s(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::IQ1_S, 256>(src, dst, n, [](const block::IQ1_S& b, float* y) {
    const float d = half_value(b.d);
    for (int g = 0; g < 32; ++g) {
      const uint16_t qh = b.qh[g / 4];
      const float scale = d * static_cast<float>(2 * (qh >> 12 & 7) + 1);
      const int high = qh >> (3 * (g % 4)) & 7;
      put_iq1_word(y + 8 * g, scale, kGridIq1[b.qs[g] | high << 8],
                   (qh & 0x8000) != 0 ? -0.125f : 0.125f);
    }
  });
}

void decode_iq1_m(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::IQ1_M, 256>(src, dst, n, [](const block::IQ1_M& b, float* y) {
    int d_bits = 0;
    for (int i = 0; i < 4; ++i) d_bits |= (b.scales[i] >> 12) << (4 * i);
    const float d = half_value(static_cast<uint16_t>(d_bits));
    for (int g = 0; g < 32; ++g) {
      const int s = b.scales[g / 8] >> (3 * (g / 2 % 4)) & 7;
      const float scale = d * static_cast<float>(2 * s + 1);
      const int qh = b.qh[g / 2] >> (4 * (g % 2));
      put_iq1_word(y + 8 * g, scale, kGridIq1[b.qs[g] | (qh & 7) << 8],
                   (qh & 8) != 0 ? -0.125f : 0.125f);
    }
  });
}

}  // namespace mt
