#pragma once
#include <bit>
#include <cstdint>

// Inline forms of the 16-bit conversions, for loops.
namespace mt {

inline float half_value(uint16_t h) {
  // Shift the fields into an f32 whose exponent is 112 too small; one exact product mends it and
  // normalises subnormals on the way. Infinities and NaN need their exponent filled.
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t special = (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(scaled) | special |
                              static_cast<uint32_t>(h & 0x8000u) << 16);
}

inline float bf16_value(uint16_t h) {
  return std::bit_cast<float>(static_cast<uint32_t>(h) << 16);
}

}  // namespace mt
