#pragma once
#include <string>
#include <vector>

#include "flow/plan.h"

namespace mt {

// The plan for llama.cpp's quantizer: one "^blk\.0\.attn_q\.weight$=q4_0" a decision, as its
// --tensor-type takes it. The quantizer lower-cases patterns, so a capital letter becomes a dot.
// Throws Error for a name with '=', a space or a control character, which it cannot be given.
std::vector<std::string> tensor_types(const Plan& plan);

// The same as the text of a --tensor-type-file, a line each.
std::string tensor_type_file(const Plan& plan);

// The same as shell words: --tensor-type '...' --tensor-type '...'.
std::string tensor_type_arguments(const Plan& plan);

}  // namespace mt
