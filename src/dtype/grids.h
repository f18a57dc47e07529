#pragma once
#include <array>
#include <cstdint>

// Code words of the lattice formats: eight 2-bit or four 4-bit indices, lowest first.
namespace mt {

extern const uint16_t kGridIq2Xxs[256];  // eight of kIq2Magnitudes
extern const uint16_t kGridIq2Xs[512];
extern const uint16_t kGridIq2S[1024];
extern const uint16_t kGridIq3Xxs[256];  // four of kIq3XxsMagnitudes
extern const uint16_t kGridIq3S[512];    // four of 1, 3, .. 15
extern const uint16_t kGridIq1[2048];    // eight of -1, 0, 1

inline constexpr float kIq2Magnitudes[4] = {8, 25, 43, 0};  // the fourth does not occur
inline constexpr float kIq3XxsMagnitudes[8] = {4, 12, 20, 28, 36, 44, 52, 62};

// Seven stored signs; the eighth makes the number of minus signs even.
inline uint8_t eight_signs(uint32_t seven) {
  return static_cast<uint8_t>(seven | static_cast<uint32_t>(__builtin_parity(seven)) << 7);
}

}  // namespace mt
