#pragma once
#include <map>
#include <string>
#include <vector>

#include "run/forward.h"

namespace mt {

// The GGUF name of a map's bias: "blk.0.attn_v.bias" for "blk.0.attn_v.weight".
std::string bias_name(const LinearMap& map);

// Maps whose bias a cut may set: those that have one, and where readers of the architecture take
// more, the maps of few outputs that add to the stream or are averaged into it (value, output,
// down). A bias that the model's file does not hold as F32 stays.
std::vector<const LinearMap*> maps_with_free_bias(const Model& model);

// Mean inputs [in] of those maps over all tokens of the windows, by name.
using InputMeans = std::map<std::string, std::vector<double>>;
// One forward pass on the bf16 path. The same values for any number of threads and in every
// instruction set. Throws Error as forward does.
InputMeans input_means(const Runtime& rt, const Model& model,
                       const std::vector<std::vector<int32_t>>& windows);

// The mean error of what rounding made of a map's outputs, taken back by the map's bias:
// b' = b + (W - W') E[x] (Finkelstein et al. 2019; Nagel et al. 2019). Maps that `cut` shares with
// `source` stay as they are. Throws Error where `means` lacks a map.
void correct_biases(const Runtime& rt, const Model& source, const InputMeans& means, Model& cut);

}  // namespace mt
