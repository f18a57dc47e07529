#pragma once
#include <string>
#include <vector>

#include "measure/eval.h"

namespace mt {

// KL of a model in which one linear map is another, against the model as it is, on a few windows.
// The stream before every step and the original's log-probabilities are computed once and kept:
// a place of layer l costs only the layers from l on.
class PlaceLoss {
 public:
  // Memory: (n_steps x d_model + n_vocab) floats for every token of the windows.
  PlaceLoss(const Runtime& rt, const Model& model, const Windows& windows);
  ~PlaceLoss();
  // Mean KL, nats a token, over all positions of all windows; `place` is a tensor's name, the
  // embedding's where the head reads it too. Throws Error where the model has no such place.
  double measure(const std::string& place, const Weight& replacement);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mt
