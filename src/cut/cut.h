#pragma once
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "cut/encode.h"
#include "file/gguf.h"
#include "flow/plan.h"

namespace mt {

// The error weights of a tensor that is written under this name.
using WeightsOf = std::function<RowWeights(const std::string& tensor)>;

// Rounding with regard to how errors add up (cut/feedback.h), for the maps of the layers: their
// inputs are the original's, or what the layers already cut make of the text.
enum class Feedback { none, independent, sequential };

// The model with every decision of the plan carried out; its new weights lie in memory, all else
// is shared with the source. With feedback layer after layer over `windows`: peak memory is their
// streams and the second moments of one layer. Throws Error where the plan names a tensor the model
// lacks, leaves one out, or asks for a format that cannot hold it.
Model cut_model(const Runtime& rt, const Model& source, const Plan& plan, const WeightsOf& weights,
                Feedback feedback = Feedback::none,
                const std::vector<std::vector<int32_t>>& windows = {});

// What the output says of its own making, as metadata under "microtome.".
struct Receipt {
  std::string version;
  std::string source_sha256;
  std::string goal;
  std::string aimed_on;  // what the plan was made against: Plan::aimed_on
  std::string plan_sha256;
  std::string calibration;         // what the weights were measured on, for people
  std::string calibration_sha256;  // 64 hex digits, or as many zeros
  std::string proof;
  std::string proof_sha256;
  double predicted_kl = 0;
  bool proved = true;  // what follows, and the proof's name, is left out where nothing was measured
  double measured_kl = 0;
  bool intervals_hold = true;  // low and high are left out where they do not
  double measured_kl_low = 0, measured_kl_high = 0;
  double measured_same_top = 0;
  Feedback feedback = Feedback::none;
  bool biases = false;       // corrected for the mean error
  int64_t refine_steps = 0;  // 0: not refined, and nothing is said of it
  bool refined_by_layer = false;
  double refine_first_kl = 0, refine_last_kl = 0;  // on calibration text
};

// Metadata and tensors of the file that `cut` becomes: the source's in its order, with new bytes
// where there are some, without the head where the cut has none. A new bias follows its map.
struct Output {
  std::vector<std::pair<std::string, MetaValue>> metadata;
  std::vector<TensorSource> tensors;
};
// `cut` must outlive the result.
Output output_of(const Model& source, const Model& cut, const Receipt& receipt);

}  // namespace mt
