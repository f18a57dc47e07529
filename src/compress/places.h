#pragma once
#include <string>
#include <vector>

#include "cut/encode.h"
#include "flow/measurements.h"
#include "flow/plan.h"
#include "flow/profile.h"
#include "plan/solve.h"

namespace mt {

// One tensor that a plan may write, and what its readers expect of it.
struct Candidate {
  std::string key;     // in measurements: the tensor's name, or "NAME as SOURCE" for a shared one
  std::string tensor;  // the GGUF name it is written under
  Weight source;       // the values that are rounded
  std::vector<Expectation> expectations;
  RowWeights weights;         // sum of the expectations' weights: what the encoder sees
  std::vector<Dtype> dtypes;  // that fit its rows; the source's own comes first (keep)
};

// A head and an embedding may be one tensor: then they are one candidate, and where the source
// holds two, that is offered beside keeping them apart.
struct HeadChoice {
  std::string tied_source;  // "" for apart
  std::vector<size_t> candidates;
};

struct Candidates {
  std::vector<Candidate> all;
  std::vector<HeadChoice> head_choices;  // empty where the source has one tensor already
};

// Every linear map of the model with the formats of `types` that fit it. Without a profile all
// errors weigh the same. The profile must outlive the result.
Candidates find_candidates(const Model& model, std::span<const Dtype> types,
                           const Profile* profile);

}  // namespace mt
