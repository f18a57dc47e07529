#pragma once
#include "dtype/blocks.h"

// The packings of the 256-weight formats' sub-scales, shared by decoders and encoders.
namespace mt {

// Q4_K, Q5_K: 8 six-bit scales and 8 six-bit mins in 12 bytes.
inline void unpack_scales_mins(const uint8_t packed[12], int scales[8], int mins[8]) {
  for (int i = 0; i < 4; ++i) {
    scales[i] = packed[i] & 63;
    mins[i] = packed[i + 4] & 63;
    scales[i + 4] = (packed[i + 8] & 15) | (packed[i] >> 6) << 4;
    mins[i + 4] = packed[i + 8] >> 4 | (packed[i + 4] >> 6) << 4;
  }
}
inline void pack_scales_mins(const int scales[8], const int mins[8], uint8_t packed[12]) {
  for (int i = 0; i < 4; ++i) {
    packed[i] = static_cast<uint8_t>(scales[i] | (scales[i + 4] >> 4) << 6);
    packed[i + 4] = static_cast<uint8_t>(mins[i] | (mins[i + 4] >> 4) << 6);
    packed[i + 8] = static_cast<uint8_t>((scales[i + 4] & 15) | (mins[i + 4] & 15) << 4);
  }
}

// Q3_K: 16 six-bit scales, stored plus 32, in 12 bytes.
inline void unpack_q3_scales(const uint8_t packed[12], int scales[16]) {
  for (int i = 0; i < 16; ++i) {
    const int low = i < 8 ? packed[i] & 15 : packed[i - 8] >> 4;
    const int high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
    scales[i] = (low | high << 4) - 32;
  }
}
inline void pack_q3_scales(const int scales[16], uint8_t packed[12]) {
  for (int i = 0; i < 12; ++i) packed[i] = 0;
  for (int i = 0; i < 16; ++i) {
    const int stored = scales[i] + 32;
    packed[i % 8] = static_cast<uint8_t>(packed[i % 8] | (stored & 15) << (i < 8 ? 0 : 4));
    packed[8 + i % 4] = static_cast<uint8_t>(packed[8 + i % 4] | (stored >> 4) << (2 * (i / 4)));
  }
}

}  // namespace mt
