#pragma once
#include <filesystem>
#include <set>
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
                       const RefineSettings& settings, bool by_layer = false);

// Through AtomicFile: the old state or the new one. Throws Error.
void save_refine_state(const std::filesystem::path& path, const std::string& key,
                       const RefineState& state);
// False, and state unchanged, where there is no file, or it is none of this key, size and hash.
bool load_refine_state(const std::filesystem::path& path, const std::string& key,
                       RefineState& state);

// By layer: the file of one part, layers first, then what is behind them.
std::filesystem::path part_of_state(const std::filesystem::path& checkpoint, int64_t number);
// The weights and norms of these names of a part that is finished, and the losses of its steps.
void save_refined_part(const std::filesystem::path& path, const std::string& key, int64_t number,
                       const Model& part, const std::set<std::string>& free,
                       const std::vector<double>& losses);
// The part's weights then lie in the mapped file. False, and nothing changed, where there is no
// file or it is none of this key, number, sizes and hash.
bool load_refined_part(const std::filesystem::path& path, const std::string& key, int64_t number,
                       Model& part, const std::set<std::string>& free, std::vector<double>& losses);
// The checkpoint and the files of parts beside it.
void remove_refine_state(const std::filesystem::path& checkpoint);

}  // namespace mt
