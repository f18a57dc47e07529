#pragma once
#include <span>
#include <vector>

#include "cut/refine.h"
#include "flow/profile.h"
#include "run/backward.h"

namespace mt {

// Windows of a text are of one length, so the first stands for all.
int64_t windows_of_a_step(const std::vector<std::vector<int32_t>>& windows,
                          const RefineSettings& settings);
// The window that comes as number `step` of n: every pass over the windows in an order of its own.
int64_t window_of(int64_t step, int64_t n, uint64_t seed);

// KL(original || cut) of windows and its gradient.
class KlGradient {
 public:
  KlGradient(const Runtime& rt, const Model& original, Path path)
      : rt_(rt), original_(original), path_(path) {}
  // Mean loss of the window; `taps` see its gradient times `share`. target: the original's normed
  // final stream. stream: BackwardOptions::stream.
  double add(const Model& cut, std::span<const int32_t> tokens, ConstMatrix target, double share,
             const BackwardTaps& taps, const MatrixBuffer* stream = nullptr);

 private:
  const Runtime& rt_;
  const Model& original_;
  Path path_;
  MatrixBuffer expected_;  // the original's logits of a slice
};

// One layer as a model of its own, its embedding, final norm and head the whole's: runs from the
// stream before the layer, without a cache for the others.
Model layer_of(const Model& model, int64_t layer);
// And back: its weights and gains into the whole.
void put_layer(Model& model, int64_t layer, const Model& alone);

// How far streams are from those of the original: the squares of the distances, every channel c of
// position t counted weights[c] (1 where there are none) / mean square of the target at t, as norms
// see the stream. Sums over positions; targets, streams:[n_tokens,d_model].
double stream_distance(const Runtime& rt, ConstMatrix streams, ConstMatrix targets,
                       std::span<const float> weights);
// The same, and replaces the streams by its gradient times `factor`.
double stream_gradient(const Runtime& rt, Matrix streams, ConstMatrix targets,
                       std::span<const float> weights, double factor);

// RefineSettings::channel_weights: what an error of the stream after each layer costs, by the mean
// squared gradients of the map that writes to it last.
std::vector<std::vector<float>> stream_weights(const Model& model, const Profile& profile);

// refine() layer by layer (methods.md), without a backward pass through the whole.
Refined refine_layers(const Runtime& rt, const Model& original, const Model& cut,
                      const std::vector<std::vector<int32_t>>& windows,
                      const RefineSettings& settings);

}  // namespace mt
