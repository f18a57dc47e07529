#include "dtype/codes.h"

#include <array>
#include <cstring>

#include "base/error.h"
#include "dtype/blocks.h"
#include "dtype/codec.h"
#include "dtype/half.h"
#include "dtype/kquants.h"

namespace mt {
namespace {

// Bits of a code in one byte of a block.
struct Bits {
  uint8_t byte = 0, shift = 0, count = 0;
};
// A code: its low bits and, in some formats, its high ones elsewhere.
struct Spot {
  Bits low, high;
};
using Layout = std::array<Spot, 256>;

constexpr Bits bits(size_t byte, int shift, int count) {
  return {static_cast<uint8_t>(byte), static_cast<uint8_t>(shift), static_cast<uint8_t>(count)};
}

template <class Place>
constexpr Layout layout(int length, Place place) {
  Layout all{};
  for (int i = 0; i < length; ++i) all[static_cast<size_t>(i)] = place(i);
  return all;
}

// Weights 0..15 in the low nibbles of 16 bytes, 16..31 in the high ones.
constexpr Bits nibble(size_t first, int i) {
  return bits(first + static_cast<size_t>(i % 16), i / 16 * 4, 4);
}
// 32 bytes hold 128 weights, two bits each.
constexpr Bits crumb(size_t first, int i) {
  return bits(first + static_cast<size_t>(32 * (i / 128) + i % 32), i % 128 / 32 * 2, 2);
}
// 32 bytes hold 64 weights, low nibbles first.
constexpr Bits long_nibble(size_t first, int i) {
  return bits(first + static_cast<size_t>(32 * (i / 64) + i % 32), i / 32 % 2 * 4, 4);
}

constexpr Layout kQ4_0 = layout(32, [](int i) { return Spot{nibble(2, i), {}}; });
constexpr Layout kQ4_1 = layout(32, [](int i) { return Spot{nibble(4, i), {}}; });
constexpr Layout kMxfp4 = layout(32, [](int i) { return Spot{nibble(1, i), {}}; });
constexpr Layout kQ5_0 = layout(32, [](int i) {
  return Spot{nibble(6, i), bits(2 + static_cast<size_t>(i / 8), i % 8, 1)};
});
constexpr Layout kQ5_1 = layout(32, [](int i) {
  return Spot{nibble(8, i), bits(4 + static_cast<size_t>(i / 8), i % 8, 1)};
});
constexpr Layout kQ8_0 = layout(32, [](int i) {
  return Spot{bits(2 + static_cast<size_t>(i), 0, 8), {}};
});
constexpr Layout kQ1_0 = layout(128, [](int i) {
  return Spot{bits(2 + static_cast<size_t>(i / 8), i % 8, 1), {}};
});
constexpr Layout kQ2_0 = layout(64, [](int i) {
  return Spot{bits(2 + static_cast<size_t>(i / 4), i % 4 * 2, 2), {}};
});
constexpr Layout kTq2_0 = layout(256, [](int i) { return Spot{crumb(0, i), {}}; });
constexpr Layout kQ2_K = layout(256, [](int i) {
  return Spot{crumb(offsetof(block::Q2_K, qs), i), {}};
});
constexpr Layout kQ3_K = layout(256, [](int i) {
  return Spot{crumb(offsetof(block::Q3_K, qs), i), bits(static_cast<size_t>(i % 32), i / 32, 1)};
});
constexpr Layout kQ4_K = layout(256, [](int i) {
  return Spot{long_nibble(offsetof(block::Q4_K, qs), i), {}};
});
constexpr Layout kQ5_K = layout(256, [](int i) {
  return Spot{long_nibble(offsetof(block::Q5_K, qs), i),
              bits(offsetof(block::Q5_K, qh) + static_cast<size_t>(i % 32), i / 32, 1)};
});
constexpr Layout kQ6_K = layout(256, [](int i) {
  return Spot{bits(static_cast<size_t>(64 * (i / 128) + i % 64), i % 128 / 64 * 4, 4),
              crumb(offsetof(block::Q6_K, qh), i)};
});
constexpr Layout kIq4Xs = layout(256, [](int i) {
  return Spot{nibble(offsetof(block::IQ4_XS, qs) + static_cast<size_t>(16 * (i / 32)), i % 32), {}};
});

constexpr uint8_t kAscending[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
constexpr float kE2m1Levels[15] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
constexpr uint8_t kE2m1Order[15] = {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7};
constexpr uint8_t kE2m1Position[16] = {7, 8, 9, 10, 11, 12, 13, 14, 7, 6, 5, 4, 3, 2, 1, 0};
constexpr float kSigns[2] = {-1, 1};

struct Format {
  Dtype dtype;
  const Layout* layout;
  Levels levels;
  uint8_t flip;  // bits of the stored code that are the other way round
};

constexpr Format kFormats[] = {
    {Dtype::Q4_0, &kQ4_0, {-8, 16}, 0},
    {Dtype::Q4_1, &kQ4_1, {0, 16}, 0},
    {Dtype::Q5_0, &kQ5_0, {-16, 32}, 0},
    {Dtype::Q5_1, &kQ5_1, {0, 32}, 0},
    {Dtype::Q8_0, &kQ8_0, {-128, 256}, 0x80},
    {Dtype::Q1_0, &kQ1_0, {0, 2, kSigns, kAscending, kAscending}, 0},
    {Dtype::Q2_0, &kQ2_0, {-1, 4}, 0},
    {Dtype::TQ2_0, &kTq2_0, {-1, 3}, 0},
    {Dtype::IQ4_NL, &kQ4_0, {0, 16, kIq4Values, kAscending, kAscending}, 0},
    {Dtype::MXFP4, &kMxfp4, {0, 15, kE2m1Levels, kE2m1Order, kE2m1Position}, 0},
    {Dtype::Q2_K, &kQ2_K, {0, 4}, 0},
    {Dtype::Q3_K, &kQ3_K, {-4, 8}, 0},
    {Dtype::Q4_K, &kQ4_K, {0, 16}, 0},
    {Dtype::Q5_K, &kQ5_K, {0, 32}, 0},
    {Dtype::Q6_K, &kQ6_K, {-32, 64}, 0},
    {Dtype::IQ4_XS, &kIq4Xs, {0, 16, kIq4Values, kAscending, kAscending}, 0},
};

const Format* find(Dtype dtype) {
  for (const Format& f : kFormats)
    if (f.dtype == dtype) return &f;
  return nullptr;
}
const Format& format_of(Dtype dtype) {
  const Format* f = find(dtype);
  if (!f) throw_error("{} has no code for each weight", name(dtype));
  return *f;
}

int take(const std::byte* block, Bits b) {
  return std::to_integer<int>(block[b.byte]) >> b.shift & ((1 << b.count) - 1);
}
void put(std::byte* block, Bits b, int value) {
  const int mask = ((1 << b.count) - 1) << b.shift;
  block[b.byte] = static_cast<std::byte>((std::to_integer<int>(block[b.byte]) & ~mask) |
                                         (value << b.shift & mask));
}

template <class Block>
Block as(const std::byte* bytes) {
  Block b;
  std::memcpy(&b, bytes, sizeof b);
  return b;
}

template <class Block>
void scale_min_pairs(const std::byte* bytes, BlockCodes& out) {
  const auto b = as<Block>(bytes);
  int scales[8], mins[8];
  unpack_scales_mins(b.scales, scales, mins);
  out.sub = 32;
  for (int s = 0; s < 8; ++s) {
    out.scale[s] = half_value(b.d) * static_cast<float>(scales[s]);
    out.offset[s] = -half_value(b.dmin) * static_cast<float>(mins[s]);
  }
}

void read_scales(Dtype dtype, const std::byte* bytes, BlockCodes& out) {
  std::fill(std::begin(out.offset), std::end(out.offset), 0.0f);
  out.sub = out.length;
  uint16_t first;
  std::memcpy(&first, bytes, sizeof first);
  out.scale[0] = half_value(first);
  switch (dtype) {
    case Dtype::Q4_1:
    case Dtype::Q5_1:
      out.offset[0] = half_value(as<block::Q4_1>(bytes).m);
      return;
    case Dtype::TQ2_0:
      out.scale[0] = half_value(as<block::TQ2_0>(bytes).d);
      return;
    case Dtype::MXFP4:
      out.scale[0] = mxfp4_scale(as<block::MXFP4>(bytes).e);
      return;
    case Dtype::Q2_K: {
      const auto b = as<block::Q2_K>(bytes);
      out.sub = 16;
      for (int s = 0; s < 16; ++s) {
        out.scale[s] = half_value(b.d) * static_cast<float>(b.scales[s] & 15);
        out.offset[s] = -half_value(b.dmin) * static_cast<float>(b.scales[s] >> 4);
      }
      return;
    }
    case Dtype::Q3_K: {
      const auto b = as<block::Q3_K>(bytes);
      int scales[16];
      unpack_q3_scales(b.scales, scales);
      out.sub = 16;
      for (int s = 0; s < 16; ++s) out.scale[s] = half_value(b.d) * static_cast<float>(scales[s]);
      return;
    }
    case Dtype::Q4_K:
      return scale_min_pairs<block::Q4_K>(bytes, out);
    case Dtype::Q5_K:
      return scale_min_pairs<block::Q5_K>(bytes, out);
    case Dtype::Q6_K: {
      const auto b = as<block::Q6_K>(bytes);
      out.sub = 16;
      for (int s = 0; s < 16; ++s) out.scale[s] = half_value(b.d) * static_cast<float>(b.scales[s]);
      return;
    }
    case Dtype::IQ4_XS: {
      const auto b = as<block::IQ4_XS>(bytes);
      out.sub = 32;
      for (int s = 0; s < 8; ++s) {
        const int low = b.scales_l[s / 2] >> (4 * (s % 2)) & 15, high = b.scales_h >> (2 * s) & 3;
        out.scale[s] = half_value(b.d) * static_cast<float>((low | high << 4) - 32);
      }
      return;
    }
    default:
      return;
  }
}

}  // namespace

const Levels* levels_of(Dtype dtype) {
  const Format* f = find(dtype);
  return f ? &f->levels : nullptr;
}

void read_codes(Dtype dtype, const std::byte* block, BlockCodes& out) {
  const Format& f = format_of(dtype);
  out.length = static_cast<int>(info(dtype).block_length);
  read_scales(dtype, block, out);
  for (int i = 0; i < out.length; ++i) {
    const Spot& s = (*f.layout)[static_cast<size_t>(i)];
    out.code[i] =
        static_cast<uint8_t>((take(block, s.low) | take(block, s.high) << s.low.count) ^ f.flip);
  }
}

void write_codes(Dtype dtype, const uint8_t* code, std::byte* block) {
  const Format& f = format_of(dtype);
  for (int i = 0; i < static_cast<int>(info(dtype).block_length); ++i) {
    const Spot& s = (*f.layout)[static_cast<size_t>(i)];
    const int stored = code[i] ^ f.flip;
    put(block, s.low, stored);
    if (s.high.count) put(block, s.high, stored >> s.low.count);
  }
}

}  // namespace mt
