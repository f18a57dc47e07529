#include <algorithm>
#include <cstddef>
#include <cstring>

#include "base/error.h"
#include "dtype/kquants.h"
#include "dtype/scale_fields.h"

namespace mt {
namespace {

template <class Block>
constexpr int kScale[] = {offsetof(Block, d)};
template <class Block>
constexpr int kScaleMin[] = {offsetof(Block, d), offsetof(Block, m)};
template <class Block>
constexpr int kSuperScales[] = {offsetof(Block, d), offsetof(Block, dmin)};

template <class Block>
Block as(const std::byte* bytes) {
  Block b;
  std::memcpy(&b, bytes, sizeof b);
  return b;
}

}  // namespace

std::span<const int> scale_offsets(Dtype dtype) {
  switch (dtype) {
    case Dtype::Q4_0:
      return kScale<block::Q4_0>;
    case Dtype::Q4_1:
      return kScaleMin<block::Q4_1>;
    case Dtype::Q5_0:
      return kScale<block::Q5_0>;
    case Dtype::Q5_1:
      return kScaleMin<block::Q5_1>;
    case Dtype::Q8_0:
      return kScale<block::Q8_0>;
    case Dtype::Q2_K:
      return kSuperScales<block::Q2_K>;
    case Dtype::Q3_K:
      return kScale<block::Q3_K>;
    case Dtype::Q4_K:
      return kSuperScales<block::Q4_K>;
    case Dtype::Q5_K:
      return kSuperScales<block::Q5_K>;
    case Dtype::Q6_K:
      return kScale<block::Q6_K>;
    case Dtype::IQ2_XXS:
      return kScale<block::IQ2_XXS>;
    case Dtype::IQ2_XS:
      return kScale<block::IQ2_XS>;
    case Dtype::IQ3_XXS:
      return kScale<block::IQ3_XXS>;
    case Dtype::IQ1_S:
      return kScale<block::IQ1_S>;
    case Dtype::IQ4_NL:
      return kScale<block::IQ4_NL>;
    case Dtype::IQ3_S:
      return kScale<block::IQ3_S>;
    case Dtype::IQ2_S:
      return kScale<block::IQ2_S>;
    case Dtype::IQ4_XS:
      return kScale<block::IQ4_XS>;
    case Dtype::TQ1_0:
      return kScale<block::TQ1_0>;
    case Dtype::TQ2_0:
      return kScale<block::TQ2_0>;
    case Dtype::Q1_0:
      return kScale<block::Q1_0>;
    case Dtype::Q2_0:
      return kScale<block::Q2_0>;
    // IQ1_M spreads its scale over four words; MXFP4 and NVFP4 have 8-bit floats.
    case Dtype::IQ1_M:
    case Dtype::MXFP4:
    case Dtype::NVFP4:
    case Dtype::F32:
    case Dtype::F16:
    case Dtype::BF16:
    case Dtype::F64:
    case Dtype::I8:
    case Dtype::I16:
    case Dtype::I32:
    case Dtype::I64:
      return {};
  }
  return {};
}

SubScales sub_scales(Dtype dtype) {
  switch (dtype) {
    case Dtype::Q2_K:
      return {.count = 16, .length = 16, .low = 0, .high = 15};
    case Dtype::Q3_K:
      return {.count = 16, .length = 16, .low = -32, .high = 31};
    case Dtype::Q4_K:
    case Dtype::Q5_K:
      return {.count = 8, .length = 32, .low = 0, .high = 63};
    case Dtype::Q6_K:
      return {.count = 16, .length = 16, .low = -128, .high = 127};
    case Dtype::IQ4_XS:
      return {.count = 8, .length = 32, .low = -32, .high = 31};
    default:
      return {};
  }
}

void read_sub_scales(Dtype dtype, const std::byte* block, int* scales) {
  if (dtype == Dtype::Q2_K) {
    const auto b = as<block::Q2_K>(block);
    for (int s = 0; s < 16; ++s) {
      scales[s] = b.scales[s] & 15;
      scales[16 + s] = b.scales[s] >> 4;
    }
  } else if (dtype == Dtype::Q3_K) {
    unpack_q3_scales(as<block::Q3_K>(block).scales, scales);
  } else if (dtype == Dtype::Q4_K || dtype == Dtype::Q5_K) {
    unpack_scales_mins(as<block::Q4_K>(block).scales, scales, scales + 8);
  } else if (dtype == Dtype::Q6_K) {
    const auto b = as<block::Q6_K>(block);
    std::copy_n(b.scales, 16, scales);
  } else if (dtype == Dtype::IQ4_XS) {
    const auto b = as<block::IQ4_XS>(block);
    for (int s = 0; s < 8; ++s) {
      const int low = b.scales_l[s / 2] >> (4 * (s % 2)) & 15, high = b.scales_h >> (2 * s) & 3;
      scales[s] = (low | high << 4) - 32;
    }
  } else {
    throw_error("{} has no scales of sub-blocks", name(dtype));
  }
}

void write_sub_scales(Dtype dtype, const int* scales, std::byte* block) {
  if (dtype == Dtype::Q2_K) {
    for (int s = 0; s < 16; ++s)
      block[offsetof(block::Q2_K, scales) + static_cast<size_t>(s)] =
          static_cast<std::byte>(scales[s] | scales[16 + s] << 4);
  } else if (dtype == Dtype::Q3_K) {
    uint8_t packed[12];
    pack_q3_scales(scales, packed);
    std::memcpy(block + offsetof(block::Q3_K, scales), packed, sizeof packed);
  } else if (dtype == Dtype::Q4_K || dtype == Dtype::Q5_K) {
    uint8_t packed[12];
    pack_scales_mins(scales, scales + 8, packed);
    std::memcpy(block + offsetof(block::Q4_K, scales), packed, sizeof packed);
  } else if (dtype == Dtype::Q6_K) {
    for (int s = 0; s < 16; ++s)
      block[offsetof(block::Q6_K, scales) + static_cast<size_t>(s)] =
          static_cast<std::byte>(scales[s]);
  } else if (dtype == Dtype::IQ4_XS) {
    auto b = as<block::IQ4_XS>(block);
    b.scales_h = 0;
    for (int s = 0; s < 8; ++s) {
      const int stored = scales[s] + 32;
      uint8_t& low = b.scales_l[s / 2];
      low = static_cast<uint8_t>(s % 2 ? (low & 15) | (stored & 15) << 4 : stored & 15);
      b.scales_h = static_cast<uint16_t>(b.scales_h | (stored >> 4) << (2 * s));
    }
    std::memcpy(block, &b, sizeof b);
  } else {
    throw_error("{} has no scales of sub-blocks", name(dtype));
  }
}

void isolate_field(Dtype dtype, size_t field, std::span<std::byte> blocks) {
  const auto offsets = scale_offsets(dtype);
  const auto block_bytes = static_cast<size_t>(info(dtype).block_bytes);
  const uint16_t zero = 0, one = float_to_half(1.0f);
  for (size_t at = 0; at < blocks.size(); at += block_bytes)
    for (size_t k = 0; k < offsets.size(); ++k)
      std::memcpy(&blocks[at + static_cast<size_t>(offsets[k])], k == field ? &one : &zero,
                  sizeof one);
}

void isolate_levels(Dtype dtype, size_t field, std::span<std::byte> blocks) {
  isolate_field(dtype, field, blocks);
  if (sub_scales(dtype).count == 0) return;
  int ones[kMostSubScales];
  std::fill(std::begin(ones), std::end(ones), 1);
  const auto block_bytes = static_cast<size_t>(info(dtype).block_bytes);
  for (size_t at = 0; at < blocks.size(); at += block_bytes)
    write_sub_scales(dtype, ones, &blocks[at]);
}

}  // namespace mt
