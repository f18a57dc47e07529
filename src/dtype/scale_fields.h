#pragma once
#include <cstddef>
#include <span>

#include "dtype/dtype.h"

namespace mt {

// Where in a block lie its f16 fields (scale, and min where there is one) in which every decoded
// value is linear: decoded = sum over fields of value * (the block decoded with that field 1 and
// the others 0). Empty for a format without blocks or whose scales are no f16.
std::span<const int> scale_offsets(Dtype dtype);

// Whole-number scales of a block's sub-blocks: the weights of sub-block s are linear in
// field * scale s, for every field. `count` of each field, `length` weights each, low .. high.
struct SubScales {
  int count = 0, length = 0, low = 0, high = 0;
};
constexpr int kMostSubScales = 32;  // of a block, all fields together
// A count of 0: the format has none (or has them in its code words).
SubScales sub_scales(Dtype dtype);
// scales: [fields, count], one block. The format must have some.
void read_sub_scales(Dtype dtype, const std::byte* block, int* scales);
void write_sub_scales(Dtype dtype, const int* scales, std::byte* block);

// Gives the field of that number the value 1 in every one of the blocks and the others 0.
void isolate_field(Dtype dtype, size_t field, std::span<std::byte> blocks);
// The same with 1 for all scales of sub-blocks: what is decoded then is what a weight changes by
// when field * scale does.
void isolate_levels(Dtype dtype, size_t field, std::span<std::byte> blocks);

}  // namespace mt
