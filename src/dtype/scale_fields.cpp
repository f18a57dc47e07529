#include <cstddef>
#include <cstring>

#include "dtype/blocks.h"
#include "dtype/scale_fields.h"

namespace mt {
namespace {

template <class Block>
constexpr int kScale[] = {offsetof(Block, d)};
template <class Block>
constexpr int kScaleMin[] = {offsetof(Block, d), offsetof(Block, m)};
template <class Block>
constexpr int kSuperScales[] = {offsetof(Block, d), offsetof(Block, dmin)};

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

void isolate_field(Dtype dtype, size_t field, std::span<std::byte> blocks) {
  const auto offsets = scale_offsets(dtype);
  const auto block_bytes = static_cast<size_t>(info(dtype).block_bytes);
  const uint16_t zero = 0, one = float_to_half(1.0f);
  for (size_t at = 0; at < blocks.size(); at += block_bytes)
    for (size_t k = 0; k < offsets.size(); ++k)
      std::memcpy(&blocks[at + static_cast<size_t>(offsets[k])], k == field ? &one : &zero,
                  sizeof one);
}

}  // namespace mt
