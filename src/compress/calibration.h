#pragma once
#include <string>
#include <vector>

#include "flow/measurements.h"
#include "measure/eval.h"
#include "text/tokenizer.h"

namespace mt {

// 80 steps; for more than 500 million weights fewer in proportion, down to 20: a step of a large
// model takes as much longer.
constexpr int64_t kRefineByWeights = -1;

struct CalibrationSettings {
  std::vector<std::string> texts;  // files, "FILE" or "FILE:weight"; none: self-sampled
  int64_t n_ctx = 0;               // of a window; 0: 512, or 256 for self-sampled text
  int64_t n_windows = 0;           // calibration; 0: 24, or 36 for self-sampled text
  int64_t n_proof_windows = 0;     // 0: 12
  uint64_t seed = 1;
  bool aims = false;         // sets windows apart to plan against, for Session::aim
  int64_t refine_steps = 0;  // after the cut, before the proof; or kRefineByWeights
};

// Calibration text: token windows, some of them set aside for the proof.
struct Calibration {
  std::string name;  // for people: "wiki.utf8 + c4.utf8", "sampled from the model"
  std::string sha256;
  Windows windows;
  Windows proof;
  Windows aim;           // where it is asked for: as many as the proof's, none of them the proof's
  std::string aim_name;  // for people: what they are and what they are not
  Windows refine;  // where refinement is asked for: as many as there are steps, of no other part
};

// Windows of these settings that are set aside for the proof.
int64_t n_proof_windows(const CalibrationSettings& settings);

// Calibration::name of these settings: what can be said before a text is read or sampled.
std::string calibration_name(const CalibrationSettings& settings);

// Reads the text, or lets the model write its own, in groups of sequences that `db` keeps, so that
// a killed run goes on where it was. Leaves the run of this model on this text selected in `db`.
// Throws Error where a text cannot be read or is too short, or where kept sequences are damaged.
Calibration make_calibration(const Runtime& rt, const Model& model, const std::string& model_sha256,
                             const Tokenizer& tokenizer, const CalibrationSettings& settings,
                             Measurements& db);

// The first n, or all where there are fewer.
Windows first_windows(const Windows& windows, int64_t n);

// SHA-256 of the token ids, hexadecimal.
std::string hash_of(const Windows& windows);

}  // namespace mt
