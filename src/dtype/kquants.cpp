// Decoding of Q2_K .. Q6_K and IQ4_XS: 256 weights, sub-blocks whose scales are quantised too.
#include "dtype/kquants.h"

#include "dtype/codec.h"
#include "dtype/half.h"

namespace mt {

void decode_q2_k(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::Q2_K, 256>(src, dst, n, [](const block::Q2_K& b, float* y) {
    const float d = half_value(b.d), dmin = half_value(b.dmin);
    for (int sub = 0; sub < 16; ++sub) {
      const float scale = d * static_cast<float>(b.scales[sub] & 15);
      const float min = dmin * static_cast<float>(b.scales[sub] >> 4);
      const uint8_t* qs = b.qs + 32 * (sub / 8) + 16 * (sub % 2);
      const int shift = 2 * (sub % 8 / 2);
      for (int i = 0; i < 16; ++i) {
        y[16 * sub + i] = scale * static_cast<float>(qs[i] >> shift & 3) - min;
      }
    }
  });
}

void decode_q3_k(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::Q3_K, 256>(src, dst, n, [](const block::Q3_K& b, float* y) {
    const float d = half_value(b.d);
    int scales[16];
    unpack_q3_scales(b.scales, scales);
    for (int sub = 0; sub < 16; ++sub) {
      const float scale = d * static_cast<float>(scales[sub]);
      const uint8_t* qs = b.qs + 32 * (sub / 8) + 16 * (sub % 2);
      const uint8_t* hmask = b.hmask + 16 * (sub % 2);
      const int shift = 2 * (sub % 8 / 2);
      for (int i = 0; i < 16; ++i) {
        const int high = (hmask[i] >> (sub / 2) & 1) != 0 ? 0 : 4;
        y[16 * sub + i] = scale * static_cast<float>((qs[i] >> shift & 3) - high);
      }
    }
  });
}

void decode_q4_k(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::Q4_K, 256>(src, dst, n, [](const block::Q4_K& b, float* y) {
    const float d = half_value(b.d), dmin = half_value(b.dmin);
    int scales[8], mins[8];
    unpack_scales_mins(b.scales, scales, mins);
    for (int sub = 0; sub < 8; ++sub) {
      const float scale = d * static_cast<float>(scales[sub]);
      const float min = dmin * static_cast<float>(mins[sub]);
      const uint8_t* qs = b.qs + 32 * (sub / 2);
      const int shift = 4 * (sub % 2);
      for (int i = 0; i < 32; ++i) {
        y[32 * sub + i] = scale * static_cast<float>(qs[i] >> shift & 15) - min;
      }
    }
  });
}

void decode_q5_k(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::Q5_K, 256>(src, dst, n, [](const block::Q5_K& b, float* y) {
    const float d = half_value(b.d), dmin = half_value(b.dmin);
    int scales[8], mins[8];
    unpack_scales_mins(b.scales, scales, mins);
    for (int sub = 0; sub < 8; ++sub) {
      const float scale = d * static_cast<float>(scales[sub]);
      const float min = dmin * static_cast<float>(mins[sub]);
      const uint8_t* qs = b.qs + 32 * (sub / 2);
      const int shift = 4 * (sub % 2);
      for (int i = 0; i < 32; ++i) {
        const int q = (qs[i] >> shift & 15) | (b.qh[i] >> sub & 1) << 4;
        y[32 * sub + i] = scale * static_cast<float>(q) - min;
      }
    }
  });
}

void decode_q6_k(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::Q6_K, 256>(src, dst, n, [](const block::Q6_K& b, float* y) {
    const float d = half_value(b.d);
    for (int sub = 0; sub < 16; ++sub) {
      const float scale = d * static_cast<float>(b.scales[sub]);
      const uint8_t* ql = b.ql + 64 * (sub / 8) + 16 * (sub % 4);
      const uint8_t* qh = b.qh + 32 * (sub / 8) + 16 * (sub % 2);
      const int low_shift = 4 * (sub % 8 / 4), high_shift = 2 * (sub % 8 / 2);
      for (int i = 0; i < 16; ++i) {
        const int q = (ql[i] >> low_shift & 15) | (qh[i] >> high_shift & 3) << 4;
        y[16 * sub + i] = scale * static_cast<float>(q - 32);
      }
    }
  });
}

void decode_iq4_xs(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::IQ4_XS, 256>(src, dst, n, [](const block::IQ4_XS& b, float* y) {
    const float d = half_value(b.d);
    for (int sub = 0; sub < 8; ++sub) {
      const int low = b.scales_l[sub / 2] >> (4 * (sub % 2)) & 15;
      const int high = b.scales_h >> (2 * sub) & 3;
      const float scale = d * static_cast<float>((low | high << 4) - 32);
      for (int i = 0; i < 16; ++i) {
        y[32 * sub + i] = scale * kIq4Values[b.qs[16 * sub + i] & 15];
        y[32 * sub + i + 16] = scale * kIq4Values[b.qs[16 * sub + i] >> 4];
      }
    }
  });
}

}  // namespace mt
