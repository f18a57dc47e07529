#pragma once
#include <optional>

#include "flow/tensor_file.h"

namespace mt {

// Whether output.weight and token_embd.weight hold one matrix, rounded twice: the RMS of their
// difference relative to the RMS of the matrix (0 where the bytes decode alike), from rows spread
// over the vocabulary; nothing where the file does not have both, where they cannot be decoded, or
// where they differ by more than the rounding of their two formats explains.
std::optional<double> head_is_embedding(const TensorFile& file);

// Relative RMS error that rounding to this format leaves, roughly: what 1.6 * 2^-bits gives for
// block formats of bell-shaped weights, the mantissa's for 16-bit floats, 0 for F32.
double typical_rounding(Dtype dtype);

}  // namespace mt
