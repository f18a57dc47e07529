#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dtype/dtype.h"

namespace mt {

// One thing that can be done to a place: write it in this format.
struct Option {
  Dtype dtype = Dtype::F32;
  bool keep = false;  // the source's own bytes (dtype is then the source's)
  int64_t bytes = 0;  // of the tensor, padded to the file's alignment
  double loss = 0;    // predicted KL, nats a token
};

// What is done to one place and why.
struct Decision {
  std::string place;  // GGUF tensor name; the embedding that serves as head too is one place
  Option chosen;
  std::optional<Option> cheaper;  // the next smaller option on the place's own curve
  std::optional<Option> dearer;   // the next larger one
};

enum class HeadPlan {
  as_source,  // one tensor if the source has one, two if it has two
  tied,       // the source has two, the plan writes one tensor that serves both
};

// Complete: model + plan = file, byte for byte.
struct Plan {
  std::string model_sha256;
  std::string model_name;
  std::string goal;  // as asked: "--size 75000000"
  // The text that losses were predicted on: its name and a hash of what was taken of it.
  std::string calibration, calibration_sha256;
  // Where it was made again with what was measured: the text that this was measured on.
  std::string aimed_on;
  HeadPlan head = HeadPlan::as_source;
  std::string tied_source;  // with HeadPlan::tied, whose values serve: "output.weight" or
                            // "token_embd.weight"
  std::vector<Decision> decisions;
  int64_t fixed_bytes = 0;      // header, metadata, alignment, norms and other kept tensors
  int64_t predicted_bytes = 0;  // of the whole file
  double predicted_kl = 0;
  double optimality_gap = 0;  // relative, of the integer programme; negative: none was solved
  std::string note;
};

// No place gets another format.
bool keeps_all(const Plan& plan);

// JSON text, indented, round-trips exactly. from_json throws Error naming the field.
std::string to_json(const Plan& plan);
Plan plan_from_json(const std::string& text, const std::string& path);

}  // namespace mt
