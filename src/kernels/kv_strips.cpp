#include "kernels/kv_strips.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <limits>

#include "dtype/half.h"

namespace mt {
namespace {

constexpr float kLargestHalf = 65504.0f;

// Infinities and NaN stay what they are: somebody is to see them.
float within_half(float x) {
  return std::isfinite(x) ? std::clamp(x, -kLargestHalf, kLargestHalf) : x;
}
uint16_t saturated_half(float x) {
  return float_to_half(within_half(x));
}
// The largest half that is not above x, which is within their range.
uint16_t half_below(float x) {
  const uint16_t h = float_to_half(x);
  if (half_value(h) <= x) return h;
  return h == 0 ? 0x8001 : static_cast<uint16_t>(h & 0x8000 ? h + 1 : h - 1);
}

template <class T>
void put(std::byte* at, int64_t i, T value) {
  std::memcpy(at + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}
template <class T>
T get(const std::byte* at, int64_t i) {
  T value;
  std::memcpy(&value, at + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// Codes of a block of 32 values around `zero`, 0 .. 2 zero - 1, and the bits of its scale.
// Q8_0 (zero 128): the largest magnitude is 127 steps. Q4_0 (zero 8): the value of the largest
// magnitude is -8 steps.
uint16_t round_block(const float* x, int zero, uint8_t* codes) {
  float largest = 0.0f, sum = 0.0f;
  for (int64_t i = 0; i < kKvBlock; ++i) {
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
    sum += x[i] * 0.0f;
  }
  if (sum != 0.0f) {  // NaN: something is not finite
    std::memset(codes, zero, kKvBlock);
    return float_to_half(std::numeric_limits<float>::quiet_NaN());
  }
  const float step = zero == 128 ? std::fabs(largest) / 127.0f : largest / -8.0f;
  const uint16_t scale = saturated_half(step);
  const float rounded = half_value(scale), inverse = rounded == 0.0f ? 0.0f : 1.0f / rounded;
  const float low = zero == 128 ? -127.0f : -8.0f, high = zero == 128 ? 127.0f : 7.0f;
  for (int64_t i = 0; i < kKvBlock; ++i)
    // Clamped and shifted to positive numbers, truncation rounds to nearest.
    codes[i] = static_cast<uint8_t>(std::clamp(x[i] * inverse, low, high) +
                                    (static_cast<float>(zero) + 0.5f));
  return scale;
}

int64_t scales_bytes(int64_t d) {
  return d / kKvBlock * kStrip * 2;
}

// Channel i of the 32 positions of two F16 strips.
void load_channel(int64_t d, const std::byte* strips, int64_t i, float* x) {
  for (int64_t j = 0; j < kChannelBlock; ++j)
    x[j] = half_value(get<uint16_t>(strips, (j / kStrip * d + i) * kStrip + j % kStrip));
}

// Rounds 32 values that fit a half into place i of a block by channel; of two places that share
// bytes the lower one has to come first.
void round_channel(int64_t d, const float* x, int64_t i, std::byte* block) {
  float least = x[0], high = x[0], sum = 0.0f;
  for (int64_t j = 0; j < kChannelBlock; ++j) {
    least = std::min(least, x[j]);
    high = std::max(high, x[j]);
    sum += x[j] * 0.0f;
  }
  const bool finite = sum == 0.0f;
  const uint16_t minimum = finite ? half_below(least) : uint16_t{0};
  const float low = half_value(minimum);
  const uint16_t scale =
      float_to_half(finite ? (high - low) / 15.0f : std::numeric_limits<float>::quiet_NaN());
  put(block, i, scale);
  put(block, d + i, minimum);
  const float step = half_value(scale), inverse = step > 0.0f ? 1.0f / step : 0.0f;
  for (int64_t j = 0; j < kChannelBlock; ++j) {
    // Truncation of positive numbers rounds to nearest; 15: the step may have been rounded down.
    const int code = finite ? static_cast<int>(std::min((x[j] - low) * inverse + 0.5f, 15.0f)) : 0;
    std::byte& at = block[(4 + j / kStrip * 8) * d + (i / 8 * kStrip + j % kStrip) * 4 + i % 4];
    at = i % 8 < 4 ? static_cast<std::byte>(code) : at | static_cast<std::byte>(code << 4);
  }
}

// Place i of strip `half` of such a block.
void load_place(int64_t d, const std::byte* block, int64_t half, int64_t i, float* y) {
  const std::byte* codes = block + (4 + half * 8) * d + i / 8 * kStrip * 4 + i % 4;
  const float scale = half_value(get<uint16_t>(block, i));
  const float low = half_value(get<uint16_t>(block, d + i));
  for (int64_t j = 0; j < kStrip; ++j) {
    const int code = get<uint8_t>(codes, j * 4) >> (i % 8 < 4 ? 0 : 4) & 15;
    y[j] = low + scale * static_cast<float>(code);
  }
}

uint16_t round_16(Dtype dtype, float x) {
  return dtype == Dtype::F16 ? saturated_half(x) : float_to_bf16(x);
}
float value_16(Dtype dtype, uint16_t x) {
  return dtype == Dtype::F16 ? half_value(x) : bf16_value(x);
}

}  // namespace

bool is_kv_type(Dtype dtype) {
  return dtype == Dtype::F32 || dtype == Dtype::F16 || dtype == Dtype::BF16 ||
         (has_kv_scales(dtype) && !by_channel(dtype));
}
bool is_key_type(Dtype dtype) {
  return is_kv_type(dtype) || by_channel(dtype);
}

int64_t kv_strip_bytes(Dtype dtype, int64_t d) {
  assert(is_key_type(dtype) && kv_type_fits(dtype, d));
  return kStrip * row_bytes(dtype, d);
}

void store_key(Dtype dtype, int64_t d, const float* x, std::byte* strip, int64_t lane) {
  assert(is_kv_type(dtype));
  if (dtype == Dtype::F32) {
    std::memcpy(strip + lane * d * 4, x, static_cast<size_t>(d) * 4);
  } else if (!has_kv_scales(dtype)) {
    for (int64_t i = 0; i < d; ++i) put(strip, i * kStrip + lane, round_16(dtype, x[i]));
  } else {
    uint8_t codes[kKvBlock];
    std::byte* rows = strip + scales_bytes(d);
    for (int64_t b = 0; b * kKvBlock < d; ++b) {
      const bool bytes = dtype == Dtype::Q8_0;
      put(strip, b * kStrip + lane, round_block(x + b * kKvBlock, bytes ? 128 : 8, codes));
      if (bytes) {
        for (int64_t g = 0; g < 8; ++g)
          std::memcpy(rows + ((b * 8 + g) * kStrip + lane) * 4, codes + g * 4, 4);
      } else {
        for (int64_t g = 0; g < 4; ++g)
          for (int64_t i = 0; i < 4; ++i)
            put(rows, ((b * 4 + g) * kStrip + lane) * 4 + i,
                static_cast<uint8_t>(codes[g * 8 + i] | codes[g * 8 + 4 + i] << 4));
      }
    }
  }
}

void store_value(Dtype dtype, int64_t d, const float* x, std::byte* strip, int64_t lane) {
  if (dtype == Dtype::F32) {
    std::memcpy(strip + lane * d * 4, x, static_cast<size_t>(d) * 4);
  } else if (!has_kv_scales(dtype)) {
    for (int64_t i = 0; i < d; ++i) put(strip, lane * d + i, round_16(dtype, x[i]));
  } else {
    uint8_t codes[kKvBlock];
    std::byte* rows = strip + scales_bytes(d);
    for (int64_t b = 0; b * kKvBlock < d; ++b) {
      const bool bytes = dtype == Dtype::Q8_0;
      put(strip, b * kStrip + lane, round_block(x + b * kKvBlock, bytes ? 128 : 8, codes));
      if (bytes)
        for (int64_t i = 0; i < kKvBlock; ++i)
          put(rows, lane * d + b * kKvBlock + i, static_cast<int8_t>(codes[i] - 128));
      else
        for (int64_t i = 0; i < 16; ++i)
          put(rows, lane * d / 2 + b * 16 + i, static_cast<uint8_t>(codes[i] | codes[i + 16] << 4));
    }
  }
}

void load_keys(Dtype dtype, int64_t d, const std::byte* strip, float* y) {
  assert(is_kv_type(dtype));
  if (dtype == Dtype::F32) {
    for (int64_t j = 0; j < kStrip; ++j)
      for (int64_t i = 0; i < d; ++i) y[i * kStrip + j] = get<float>(strip, j * d + i);
  } else if (!has_kv_scales(dtype)) {
    for (int64_t i = 0; i < d * kStrip; ++i) y[i] = value_16(dtype, get<uint16_t>(strip, i));
  } else {
    const std::byte* rows = strip + scales_bytes(d);
    float scale[kStrip];
    for (int64_t i = 0; i < d; ++i) {
      if (i % kKvBlock == 0)
        for (int64_t j = 0; j < kStrip; ++j)
          scale[j] = half_value(get<uint16_t>(strip, i / kKvBlock * kStrip + j));
      for (int64_t j = 0; j < kStrip; ++j) {
        int code;
        if (dtype == Dtype::Q8_0)
          code = get<uint8_t>(rows, (i / 4 * kStrip + j) * 4 + i % 4) - 128;
        else
          code =
              (get<uint8_t>(rows, (i / 8 * kStrip + j) * 4 + i % 4) >> (i % 8 < 4 ? 0 : 4) & 15) -
              8;
        y[i * kStrip + j] = scale[j] * static_cast<float>(code);
      }
    }
  }
}

void load_values(Dtype dtype, int64_t d, const std::byte* strip, float* y) {
  if (dtype == Dtype::F32) {
    std::memcpy(y, strip, static_cast<size_t>(kStrip * d) * 4);
  } else if (!has_kv_scales(dtype)) {
    for (int64_t i = 0; i < d * kStrip; ++i) y[i] = value_16(dtype, get<uint16_t>(strip, i));
  } else {
    const std::byte* rows = strip + scales_bytes(d);
    for (int64_t j = 0; j < kStrip; ++j)
      for (int64_t b = 0; b < d / kKvBlock; ++b) {
        const float scale = half_value(get<uint16_t>(strip, b * kStrip + j));
        float* to = y + j * d + b * kKvBlock;
        if (dtype == Dtype::Q8_0) {
          for (int64_t i = 0; i < kKvBlock; ++i)
            to[i] = scale * static_cast<float>(get<int8_t>(rows, j * d + b * kKvBlock + i));
        } else {
          for (int64_t i = 0; i < 16; ++i) {
            const auto both = get<uint8_t>(rows, j * d / 2 + b * 16 + i);
            to[i] = scale * static_cast<float>((both & 15) - 8);
            to[i + 16] = scale * static_cast<float>((both >> 4) - 8);
          }
        }
      }
  }
}

void round_key_block(int64_t d, const std::byte* strips, std::byte* block) {
  float x[kChannelBlock];
  for (int64_t i = 0; i < d; ++i) {
    load_channel(d, strips, i, x);
    round_channel(d, x, i, block);
  }
}

void load_key_block(int64_t d, const std::byte* block, int64_t half, float* y) {
  for (int64_t i = 0; i < d; ++i) load_place(d, block, half, i, y + i * kStrip);
}

void round_turned_key_block(int64_t d, const std::byte* strips, const KeyTurns& turns, int64_t b,
                            std::byte* block) {
  const int64_t pairs = d / 2;
  float x[kChannelBlock], y[kChannelBlock];
  for (int64_t i = 0; i < pairs; ++i) {
    load_channel(d, strips, turns.channel[i], x);
    load_channel(d, strips, turns.channel[pairs + i], y);
    const float cos_b = turns.blocks[b * d + i], sin_b = turns.blocks[b * d + pairs + i];
    const float* cos_j = turns.lanes + i * 2 * kChannelBlock;
    const float* sin_j = cos_j + kChannelBlock;
    for (int64_t j = 0; j < kChannelBlock; ++j) {
      const float u = x[j] * cos_b + y[j] * sin_b, v = y[j] * cos_b - x[j] * sin_b;
      x[j] = within_half(u * cos_j[j] + v * sin_j[j]);
      y[j] = within_half(v * cos_j[j] - u * sin_j[j]);
    }
    round_channel(d, x, i, block);
    round_channel(d, y, pairs + i, block);
  }
}

void load_turned_key_block(int64_t d, const std::byte* block, int64_t half, const KeyTurns& turns,
                           int64_t b, float* y) {
  const int64_t pairs = d / 2;
  float u[kStrip], v[kStrip];
  for (int64_t i = 0; i < pairs; ++i) {
    load_place(d, block, half, i, u);
    load_place(d, block, half, pairs + i, v);
    const float cos_b = turns.blocks[b * d + i], sin_b = turns.blocks[b * d + pairs + i];
    const float* cos_j = turns.lanes + i * 2 * kChannelBlock + half * kStrip;
    const float* sin_j = cos_j + kChannelBlock;
    float* to_x = y + turns.channel[i] * kStrip;
    float* to_y = y + turns.channel[pairs + i] * kStrip;
    for (int64_t j = 0; j < kStrip; ++j) {
      const float at_x = u[j] * cos_j[j] - v[j] * sin_j[j];
      const float at_y = v[j] * cos_j[j] + u[j] * sin_j[j];
      to_x[j] = at_x * cos_b - at_y * sin_b;
      to_y[j] = at_y * cos_b + at_x * sin_b;
    }
  }
}

}  // namespace mt
