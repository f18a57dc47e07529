#pragma once
#include <span>
#include <string>
#include <vector>

#include "flow/measurements.h"
#include "flow/profile.h"
#include "run/forward.h"

namespace mt {

// Streams the windows through the model once, forward and backward, and returns the profile.
// The running sums are kept in the selected run of `db` after every window, so that a killed pass
// goes on with the next one and ends with the same values. path: bf16 or exact. Labels are drawn
// from the model with `seed`. Peak memory: one window's streams and one layer's activations. Throws
// Error.
Profile measure_moments(const Runtime& rt, const Model& model,
                        const std::vector<std::vector<int32_t>>& windows, uint64_t seed,
                        Measurements& db, Path path = Path::bf16);

}  // namespace mt
