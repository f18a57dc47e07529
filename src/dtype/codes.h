#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "dtype/dtype.h"

namespace mt {

// What a code means before scale and offset: the code'th of a list, or `low` plus the code.
struct Levels {
  int low = 0, count = 0;
  const float* listed = nullptr;      // ascending; nullptr: consecutive integers
  const uint8_t* order = nullptr;     // listed: the code of each level
  const uint8_t* position = nullptr;  // listed: the level of each code

  float value(uint8_t code) const {
    return listed ? listed[position[code]] : static_cast<float>(low + code);
  }
  // y that is no number: the lowest level.
  uint8_t nearest(float y) const {
    if (!listed) {
      const float index = std::nearbyint(y) - static_cast<float>(low);
      return index > 0 ? static_cast<uint8_t>(std::min(index, static_cast<float>(count - 1))) : 0;
    }
    int below = 0;
    for (int i = 1; i < count; ++i) below += y > 0.5f * (listed[i - 1] + listed[i]);
    return order[below];
  }
};

// A block taken apart: weight i is offset[i / sub] + scale[i / sub] * level of code[i].
struct BlockCodes {
  int length = 0, sub = 0;
  float scale[16] = {}, offset[16] = {};
  uint8_t code[256] = {};
};

// The levels of a format whose weights have codes of their own; nullptr for one of code words
// (IQ1, IQ2, IQ3), of base-3 digits (TQ1_0), of scales that vary otherwise (NVFP4) or of none.
const Levels* levels_of(Dtype dtype);

// block: info(dtype).block_bytes. The format must have levels.
void read_codes(Dtype dtype, const std::byte* block, BlockCodes& out);
// Puts other codes into a block and leaves its scales. code: as many as the block has weights.
void write_codes(Dtype dtype, const uint8_t* code, std::byte* block);

}  // namespace mt
