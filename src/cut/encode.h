#pragma once
#include <functional>
#include <span>
#include <vector>

#include "flow/model.h"
#include "flow/profile.h"
#include "run/forward.h"

namespace mt {

// Weights of the squared errors in one row: fills [in] floats.
using RowWeights = std::function<void(int64_t row, std::span<float> weights)>;

// Those of a tensor in its role; without a profile every weight is 1.
RowWeights row_weights(const Profile* profile, const std::string& tensor, Role role);

// The weight in another format: rows encoded one by one under their error weights. The same bytes
// for any number of threads. Throws Error where the format cannot hold the row length.
Weight encode_weight(const Runtime& rt, const Weight& source, Dtype dtype,
                     const RowWeights& weights);

// One value that readers of a tensor expect, and how much its error counts.
struct Expectation {
  Weight values;
  RowWeights weights;
};

// Predicted loss (nats a token) of each format for a tensor whose values are `source`:
// sum over expectations and elements of weight * (decoded - expected)^2. Estimated on `n_rows`
// rows drawn in proportion to their weighted energy (systematic sampling, Madow 1949); all rows
// where there are fewer.
std::vector<double> rounding_loss(const Runtime& rt, const Weight& source,
                                  std::span<const Expectation> expectations,
                                  std::span<const Dtype> dtypes, int64_t n_rows);

}  // namespace mt
