#pragma once
#include <string>
#include <vector>

#include "measure/eval.h"

namespace mt {

// KL of a model in which some linear maps are others, against the model as it is, on a few windows.
// The original's log-probabilities are computed once and kept, and so are the streams of the model
// that the next is likely to resemble: one that differs from it in layer l costs only the layers
// from l on.
class PlaceLoss {
 public:
  // Memory: (n_steps x d_model + n_vocab) floats for every token of the windows.
  PlaceLoss(const Runtime& rt, const Model& model, const Windows& windows);
  ~PlaceLoss();
  // Mean KL, nats a token, over all positions of all windows; `place` is a tensor's name, the
  // embedding's where the head reads it too. Throws Error where the model has no such place.
  double measure(const std::string& place, const Weight& replacement);
  // The same of a whole cut. Maps count as others where their bytes lie elsewhere.
  double measure(const Model& cut);
  // From here on it is `cut` whose streams are kept; at first the original's.
  void stand_on(const Model& cut);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mt
