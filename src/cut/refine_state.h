#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "cut/refine.h"

namespace mt {

// What a refinement needs to go on: parameters, Adam's running means, the same of rounding that is
// learned, the losses so far (their number is the number of steps done).
struct RefineState {
  std::vector<float> master, mean, square;
  std::vector<float> sub_latent, sub_mean, sub_square;
  std::vector<float> latent, latent_mean, latent_square;
  std::vector<double> losses;
};

// A hash of a model's values: every linear map as it is stored, every norm.
std::string content_hash(const Model& model);
// A hash of all that decides a run's outcome: source, the cut's bytes and norms, windows, settings.
std::string refine_key(const Model& original, const Model& cut,
                       const std::vector<std::vector<int32_t>>& windows,
                       const RefineSettings& settings);

// Through AtomicFile: the old state or the new one. Throws Error.
void save_refine_state(const std::filesystem::path& path, const std::string& key,
                       const RefineState& state);
// False, and state unchanged, where there is no file, or it is no state of this key and size.
bool load_refine_state(const std::filesystem::path& path, const std::string& key,
                       RefineState& state);

}  // namespace mt
