// F32, F64, F16, BF16: no blocks, only rounding.
#include <cmath>
#include <limits>

#include "dtype/codec.h"
#include "dtype/dtype.h"
#include "dtype/half.h"

namespace mt {
namespace {

template <class T>
T load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float finite_or_zero(float x) {
  return std::isfinite(x) ? x : 0.0f;
}

}  // namespace

float half_to_float(uint16_t h) {
  return half_value(h);
}
float bf16_to_float(uint16_t h) {
  return bf16_value(h);
}

uint16_t float_to_half(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);   // NaN
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds past 65504
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 aligns the last bit kept with 2^-24 and rounds to even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

uint16_t float_to_bf16(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

void decode_f32(const std::byte* src, float* dst, int64_t n) {
  std::memcpy(dst, src, static_cast<size_t>(n) * 4);
}
void decode_f64(const std::byte* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    // A double beyond f32 would be undefined to convert: it becomes the infinity it rounds to.
    const auto value = load<double>(src + 8 * i);
    const double limit = 0x1.ffffffp127;
    dst[i] = std::fabs(value) < limit || std::isnan(value)
                 ? static_cast<float>(value)
                 : std::copysign(std::numeric_limits<float>::infinity(),
                                 std::signbit(value) ? -1.0f : 1.0f);
  }
}
void decode_f16(const std::byte* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] = half_value(load<uint16_t>(src + 2 * i));
}
void decode_bf16(const std::byte* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] = bf16_value(load<uint16_t>(src + 2 * i));
}

void encode_f32(const float* src, const float*, std::byte* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = finite_or_zero(src[i]);
    std::memcpy(dst + 4 * i, &value, 4);
  }
}
void encode_f16(const float* src, const float*, std::byte* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = finite_or_zero(src[i]);
    const float clamped = x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x;
    const uint16_t h = float_to_half(clamped);
    std::memcpy(dst + 2 * i, &h, 2);
  }
}
void encode_bf16(const float* src, const float*, std::byte* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = finite_or_zero(src[i]);
    uint16_t h = float_to_bf16(x);
    if ((h & 0x7fffu) == 0x7f80u) h = static_cast<uint16_t>(h - 1);  // largest finite instead
    std::memcpy(dst + 2 * i, &h, 2);
  }
}

}  // namespace mt
