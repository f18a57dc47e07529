#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "flow/plan.h"

namespace mt {

// One place and what can be done to it. Options come in any order; their losses may be noisy,
// negative or not fall with the bytes: what another option beats in both is never chosen.
struct Place {
  std::string name;
  std::vector<Option> options;
  int group = -1;  // places of one group (>= 0) take the same format (or all keep theirs)
};

// One way to lay out a part of the model: the places it needs, and what it adds to the fixed bytes
// (a tensor's directory entry, say). A place that no alternative names is always used.
struct Alternative {
  std::string label;
  std::vector<size_t> places;  // indices into Problem::places
  int64_t fixed_bytes = 0;
  double fixed_loss = 0;
};

// Exactly one of these is used: a head and an embedding kept apart, or one tensor for both.
// The first is what the source does.
struct Exclusive {
  std::string name;
  std::vector<Alternative> alternatives;
};

struct Problem {
  std::vector<Place> places;
  std::vector<Exclusive> alternatives;
  int64_t fixed_bytes = 0;  // all that no option changes
};

struct SolveSettings {
  double gap = 1e-5;          // relative; the search ends when the answer is proved this good
  int64_t max_nodes = 20000;  // of the branch and bound, a solve: what usually ends a hard one
  double max_seconds = 30;    // a solve; beyond it the answer may differ from run to run
  std::string hint;           // ends the message where nothing fits: "widen --types"
};

// One option for every place in use. `gap` is (cost - proved bound) / |cost| of the goal's cost;
// negative where nothing was optimised.
struct Solution {
  std::vector<int> option;       // index into Place::options, -1: the place is not in use
  std::vector<int> alternative;  // index into Exclusive::alternatives
  int64_t bytes = 0;             // fixed bytes included
  double loss = 0;
  double gap = 0;
  std::vector<std::string> notes;  // fallbacks of `uniform`
};

// The smallest predicted loss in at most `budget` bytes. Ties go to the smaller index; the same
// problem gives the same answer unless max_seconds is reached. Throws Error that names the smallest
// reachable bytes where nothing fits, or the place whose options are empty or not finite.
Solution minimise_loss(const Problem& problem, int64_t budget, const SolveSettings& settings = {});

// The fewest bytes with a predicted loss of at most `max_loss` (to a part in 10^12, the rounding of
// the sum); among those, the smallest loss. Throws Error that names the smallest reachable loss.
Solution minimise_bytes(const Problem& problem, double max_loss,
                        const SolveSettings& settings = {});

// Of the smallest choice there is.
int64_t fewest_bytes(const Problem& problem);

// The plain uniform cut: every place in `dtype`, kept where the source has it already. Where a
// place does not offer it, the format that llama.cpp's quantizer falls back to, else the next
// larger one offered, with a note each. Uses the first of each Exclusive.
Solution uniform(const Problem& problem, Dtype dtype, const SolveSettings& settings = {});

// At most n solutions from the fewest bytes to the smallest loss, or to `most` bytes where that is
// less (but never below the fewest): budgets evenly spaced in their logarithm, bytes strictly
// rising, loss strictly falling.
std::vector<Solution> frontier(const Problem& problem, int n, const SolveSettings& settings = {},
                               int64_t most = std::numeric_limits<int64_t>::max());

// A decision for one of the place's options, with its neighbours on the place's own curve.
Decision decide(const Place& place, const Option& chosen);

// Decisions with their neighbours on each place's own curve, and the predicted totals. What the
// problem does not know (model, goal, head) is left to the caller. Throws Error where two places
// in use have one name.
Plan to_plan(const Problem& problem, const Solution& solution);

// The options that no other beats in both bytes and loss, by rising bytes: indices.
std::vector<int> own_curve(const Place& place);

}  // namespace mt
