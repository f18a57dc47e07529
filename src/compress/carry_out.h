#pragma once
#include <functional>
#include <string>
#include <vector>

#include "compress/session.h"

namespace mt {

// A goal carried out: planned, cut, refined where the session refines, proved.
struct Result {
  Plan plan;
  Model cut;
  Model refined;  // the cut itself where nothing is refined
  Comparison proof;
  std::vector<std::string> notes;  // for people: what was decided on the way, and why
};

// A plan for a goal; for one in bytes or bits improved by search where the session searches, and
// the notes say what it found.
Plan planned(Session& session, const Goal& goal, std::vector<std::string>& notes);

// A goal in bytes, bits or formats is planned once. A goal in KL is a search for the smallest file
// whose KL, measured on the session's windows for aiming (settings.aims), is within the bound;
// then it is proved on the windows set aside, which the search did not see. Where the proof misses
// the bound, the search goes on for as much less as the proof's text is harder: plan.aimed_on and
// the notes say so. `say` is told each note as it comes. Where the session has error feedback, the
// plan is cut without it too and the better of both on the windows set aside goes on.
Result carry_out(Session& session, const Goal& goal,
                 const std::function<void(const std::string&)>& say);

// Of a result that has its plan and its cut: refines it where the session refines, and proves it. A
// refined model that loses more on the windows set aside than the cut is dropped, and the notes say
// so.
void refine_and_prove(Session& session, Result& result);

}  // namespace mt
