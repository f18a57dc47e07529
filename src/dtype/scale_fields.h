#pragma once
#include <cstddef>
#include <span>

#include "dtype/dtype.h"

namespace mt {

// Where in a block lie its f16 fields (scale, and min where there is one) in which every decoded
// value is linear: decoded = sum over fields of value * (the block decoded with that field 1 and
// the others 0). Empty for a format without blocks or whose scales are no f16.
std::span<const int> scale_offsets(Dtype dtype);

// Gives the field of that number the value 1 in every one of the blocks and the others 0.
void isolate_field(Dtype dtype, size_t field, std::span<std::byte> blocks);

}  // namespace mt
