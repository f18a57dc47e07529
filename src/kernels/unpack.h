#pragma once
#include <cstdint>
#include <cstring>

#include "dtype/dtype.h"

// Block fields as the vector kernels read them: unaligned loads and the packed sub-scales of the
// 256-weight formats. Everything is static, so that each file has its own copy (attributes.h).
namespace mt {

template <class T>
static inline T load_as(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// Q4_K, Q5_K: 12 bytes -> 8 scales and 8 mins, one a byte.
static inline void unpack_k4_scales(const uint8_t* packed, uint64_t& scales, uint64_t& mins) {
  uint32_t a = load_as<uint32_t>(packed), b = load_as<uint32_t>(packed + 4);
  uint32_t c = load_as<uint32_t>(packed + 8);
  uint64_t scales_high = (c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u);
  uint64_t mins_high = (c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u);
  scales = (a & 0x3f3f3f3fu) | scales_high << 32;
  mins = (b & 0x3f3f3f3fu) | mins_high << 32;
}

// Q3_K: 12 bytes -> 16 scales, one a byte, 32 too high.
static inline void unpack_k3_scales(const uint8_t* packed, uint64_t& first, uint64_t& second) {
  uint32_t a = load_as<uint32_t>(packed), b = load_as<uint32_t>(packed + 4);
  uint32_t c = load_as<uint32_t>(packed + 8);
  uint64_t s4 = (b & 0x0f0f0f0fu) | (c << 2 & 0x30303030u);
  uint64_t s12 = (b >> 4 & 0x0f0f0f0fu) | (c >> 2 & 0x30303030u);
  first = (a & 0x0f0f0f0fu) | (c << 4 & 0x30303030u) | s4 << 32;
  second = (a >> 4 & 0x0f0f0f0fu) | (c & 0x30303030u) | s12 << 32;
}

// The formats whose codes are words of a table, of those with fast products.
static constexpr bool is_lattice(Dtype t) {
  return t == Dtype::IQ2_XXS || t == Dtype::IQ2_XS || t == Dtype::IQ2_S || t == Dtype::IQ3_XXS ||
         t == Dtype::IQ3_S;
}

// Values of the 4-bit codes that are tables.
constexpr int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
constexpr int8_t e2m1_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace mt
