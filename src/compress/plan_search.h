#pragma once
#include "compress/session.h"

namespace mt {

struct Searched {
  Plan plan;
  int64_t n_measured = 0;  // plans, those of an earlier search included
  int64_t n_kept = 0;      // of these, found in the database
  bool ended = false;      // nothing more was promising
  int64_t n_better = 0;    // steps taken
  double kl_before = 0;    // on the windows of the search, nats a token
  double kl_after = 0;
};

// Local search on measured KL: two places change their formats, or one does, within `budget` bytes
// of file, and the change stays where the KL on some calibration windows (2,048 tokens, fewer where
// a GiB of logits has no room for them) falls. Tried first is what promises most: the predicted
// change of the loss less a quarter of the losses that are exchanged, for predictions err; what a
// trial shows of a prediction's error is shared by the places it changed. Ends when nothing is
// promising any more, or after `seconds` of measuring. Every trial is kept in the session's
// database: a search that was cut short goes on where it was. Throws Error where the plan is none
// of the session's model.
Searched search_plan(Session& session, const Plan& plan, int64_t budget, double seconds);

}  // namespace mt
