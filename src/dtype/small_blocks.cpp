// Decoding of the formats with one scale for a short block.
#include <bit>

#include "dtype/blocks.h"
#include "dtype/codec.h"
#include "dtype/half.h"

namespace mt {

float mxfp4_scale(uint8_t e) {
  return std::bit_cast<float>(e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23);
}

float nvfp4_scale(uint8_t bits) {
  if (bits == 0x7f) return 0.0f;
  const int exponent = bits >> 3 & 15;
  const int mantissa = bits & 7;
  if (exponent == 0) return static_cast<float>(mantissa) * 0x1p-10f;
  return static_cast<float>(8 + mantissa) *
         std::bit_cast<float>(static_cast<uint32_t>(exponent + 127 - 11) << 23);
}

void decode_q4_0(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::Q4_0, 32>(src, dst, n, [](const block::Q4_0& b, float* y) {
    const float d = half_value(b.d);
    for (int i = 0; i < 16; ++i) {
      y[i] = static_cast<float>((b.qs[i] & 15) - 8) * d;
      y[i + 16] = static_cast<float>((b.qs[i] >> 4) - 8) * d;
    }
  });
}

void decode_q4_1(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::Q4_1, 32>(src, dst, n, [](const block::Q4_1& b, float* y) {
    const float d = half_value(b.d), m = half_value(b.m);
    for (int i = 0; i < 16; ++i) {
      y[i] = static_cast<float>(b.qs[i] & 15) * d + m;
      y[i + 16] = static_cast<float>(b.qs[i] >> 4) * d + m;
    }
  });
}

void decode_q5_0(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::Q5_0, 32>(src, dst, n, [](const block::Q5_0& b, float* y) {
    const float d = half_value(b.d);
    const uint32_t qh = b.qh;
    for (int i = 0; i < 16; ++i) {
      const int low = (b.qs[i] & 15) | static_cast<int>((qh >> i & 1u) << 4);
      const int high = (b.qs[i] >> 4) | static_cast<int>((qh >> (i + 16) & 1u) << 4);
      y[i] = static_cast<float>(low - 16) * d;
      y[i + 16] = static_cast<float>(high - 16) * d;
    }
  });
}

void decode_q5_1(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::Q5_1, 32>(src, dst, n, [](const block::Q5_1& b, float* y) {
    const float d = half_value(b.d), m = half_value(b.m);
    const uint32_t qh = b.qh;
    for (int i = 0; i < 16; ++i) {
      const int low = (b.qs[i] & 15) | static_cast<int>((qh >> i & 1u) << 4);
      const int high = (b.qs[i] >> 4) | static_cast<int>((qh >> (i + 16) & 1u) << 4);
      y[i] = static_cast<float>(low) * d + m;
      y[i + 16] = static_cast<float>(high) * d + m;
    }
  });
}

void decode_q8_0(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::Q8_0, 32>(src, dst, n, [](const block::Q8_0& b, float* y) {
    const float d = half_value(b.d);
    for (int i = 0; i < 32; ++i) y[i] = static_cast<float>(b.qs[i]) * d;
  });
}

void decode_iq4_nl(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::IQ4_NL, 32>(src, dst, n, [](const block::IQ4_NL& b, float* y) {
    const float d = half_value(b.d);
    for (int i = 0; i < 16; ++i) {
      y[i] = kIq4Values[b.qs[i] & 15] * d;
      y[i + 16] = kIq4Values[b.qs[i] >> 4] * d;
    }
  });
}

void decode_mxfp4(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::MXFP4, 32>(src, dst, n, [](const block::MXFP4& b, float* y) {
    const float d = mxfp4_scale(b.e);
    for (int i = 0; i < 16; ++i) {
      y[i] = kE2m1Values[b.qs[i] & 15] * d;
      y[i + 16] = kE2m1Values[b.qs[i] >> 4] * d;
    }
  });
}

void decode_nvfp4(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::NVFP4, 64>(src, dst, n, [](const block::NVFP4& b, float* y) {
    for (int s = 0; s < 4; ++s) {
      const float d = nvfp4_scale(b.d[s]);
      for (int i = 0; i < 8; ++i) {
        y[16 * s + i] = kE2m1Values[b.qs[8 * s + i] & 15] * d;
        y[16 * s + i + 8] = kE2m1Values[b.qs[8 * s + i] >> 4] * d;
      }
    }
  });
}

void decode_q1_0(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::Q1_0, 128>(src, dst, n, [](const block::Q1_0& b, float* y) {
    const float d = half_value(b.d);
    for (int i = 0; i < 128; ++i) y[i] = (b.qs[i / 8] >> (i % 8) & 1) != 0 ? d : -d;
  });
}

void decode_q2_0(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::Q2_0, 64>(src, dst, n, [](const block::Q2_0& b, float* y) {
    const float d = half_value(b.d);
    for (int i = 0; i < 64; ++i) {
      y[i] = static_cast<float>((b.qs[i / 4] >> (2 * (i % 4)) & 3) - 1) * d;
    }
  });
}

void decode_tq1_0(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::TQ1_0, 256>(src, dst, n, [](const block::TQ1_0& b, float* y) {
    const float d = half_value(b.d);
    // A byte is a base-3 fraction: times 3^k (mod 256) brings digit k to the top.
    static constexpr uint8_t kPow3[5] = {1, 3, 9, 27, 81};
    const auto digit = [](uint8_t byte, int k) {
      const auto top = static_cast<uint8_t>(byte * kPow3[k]);
      return static_cast<float>((top * 3 >> 8) - 1);
    };
    for (int k = 0; k < 5; ++k) {
      for (int i = 0; i < 32; ++i) y[32 * k + i] = digit(b.qs[i], k) * d;
      for (int i = 0; i < 16; ++i) y[160 + 16 * k + i] = digit(b.qs[32 + i], k) * d;
    }
    for (int k = 0; k < 4; ++k) {
      for (int i = 0; i < 4; ++i) y[240 + 4 * k + i] = digit(b.qh[i], k) * d;
    }
  });
}

void decode_tq2_0(const std::byte* src, float* dst, int64_t n) {
  decode_blocks<block::TQ2_0, 256>(src, dst, n, [](const block::TQ2_0& b, float* y) {
    const float d = half_value(b.d);
    for (int half = 0; half < 2; ++half) {
      for (int s = 0; s < 4; ++s) {
        for (int i = 0; i < 32; ++i) {
          y[128 * half + 32 * s + i] =
              static_cast<float>((b.qs[32 * half + i] >> (2 * s) & 3) - 1) * d;
        }
      }
    }
  });
}

}  // namespace mt
