#pragma once
#include <span>
#include <string_view>

#include "flow/model.h"

namespace mt {

// Biases that the readers of an architecture load where a file has them, and do without otherwise.
enum class OptionalBiases {
  none,
  all,  // of every map of a layer
};

// What a family of models is, as data. Sizes come from the file's metadata.
struct Architecture {
  std::string_view name;  // general.architecture
  Activation activation;
  bool rope_neox;         // pairs (i, i + d/2) instead of (2i, 2i+1)
  bool qk_norm;           // RMSNorm of every head of q and k before RoPE
  bool post_norms;        // RMSNorm of what attention and MLP add
  bool scaled_embedding;  // embedding times sqrt(d_model)
  bool tied_head_loads;   // readers take a file without output.weight
  OptionalBiases biases;
  // Layer l sees a sliding window where l % pattern < pattern - 1 (0: no windows). Such layers
  // have a RoPE base of their own and no position scaling.
  int window_pattern;
  double window_rope_base;
};

// Every family this program runs: one file each in this folder.
std::span<const Architecture* const> all_architectures();
const Architecture* find_architecture(std::string_view name);

}  // namespace mt
