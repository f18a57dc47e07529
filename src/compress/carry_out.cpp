#include "compress/carry_out.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "compress/plan_search.h"

namespace mt {
namespace {

// A search ends when the KL of the best plan is this near the bound, or when the next smaller plan
// tried, which misses it, is this near in bytes.
constexpr double kNearKl = 0.98;
constexpr double kNearBytes = 0.004;
constexpr int kTrials = 10;
constexpr int kProofs = 3;

struct Trial {
  Plan plan;
  double target = 0;  // the KL that gave this plan, uncorrected as what it predicts
  double predicted = 0;
  double measured = 0;  // on the windows for aiming
};

class Search {
 public:
  Search(Session& session, const Goal& goal, const std::function<void(const std::string&)>& say,
         std::vector<std::string>& notes)
      : session_(session), goal_(goal), say_(say), notes_(notes) {}

  // The smallest plan found whose measured KL is at most `bound`; where none is, the one of the
  // least KL.
  const Trial& smallest_within(double bound) {
    int repeated = 0;  // attempts since the last that gave a new plan
    for (int i = 0; i < kTrials; ++i) {
      const Trial *fits = best(bound), *misses = nearest_miss(bound);
      if (fits && (fits->measured >= kNearKl * bound ||
                   (misses && double(fits->plan.predicted_bytes - misses->plan.predicted_bytes) <=
                                  kNearBytes * double(fits->plan.predicted_bytes))))
        break;
      double target = next_target(bound, fits, misses);
      // Plans are few where the model is small: a longer step finds another.
      if (!fits) target *= std::pow(0.96, repeated);
      if (!misses) target *= std::pow(1.04, repeated);
      repeated = attempt(target, bound) ? 0 : repeated + 1;
    }
    if (const Trial* fits = best(bound)) return *fits;
    return *std::min_element(trials_.begin(), trials_.end(), [](const Trial& a, const Trial& b) {
      return a.measured < b.measured;
    });
  }

 private:
  static double next_target(double bound, const Trial* fits, const Trial* misses) {
    const double aim = 0.995 * bound;
    if (!fits && !misses) return bound;
    if (!fits || !misses) {
      const Trial& t = fits ? *fits : *misses;
      return t.target * std::clamp(aim / std::max(t.measured, 1e-12), 0.02, 50.0);
    }
    // Between a plan that fits and one that does not: a straight line in logarithms.
    const double low = std::log(fits->target), high = std::log(misses->target);
    const double from = std::log(std::max(fits->measured, 1e-12));
    const double to = std::log(std::max(misses->measured, 1e-12));
    const double share = to > from ? (std::log(aim) - from) / (to - from) : 0.5;
    return std::exp(low + std::clamp(share, 0.1, 0.9) * (high - low));
  }

  // Plans for a KL of `target`, cuts and measures; a plan that is known already is not made again:
  // false.
  bool attempt(double target, double bound) {
    // What is known of predictions near by becomes a part of this one.
    double correction = 1, nearest = INFINITY;
    for (const Trial& t : trials_)
      if (const double away = std::fabs(std::log(t.predicted / target)); away < nearest)
        nearest = away, correction = std::max(t.measured, 1e-12) / t.predicted;
    Goal goal = goal_;
    goal.max_kl = target * correction;
    Plan plan = session_.plan(goal, correction);
    for (Trial& t : trials_)
      if (std::equal(plan.decisions.begin(), plan.decisions.end(), t.plan.decisions.begin(),
                     t.plan.decisions.end(), [](const Decision& a, const Decision& b) {
                       return a.place == b.place && a.chosen.dtype == b.chosen.dtype;
                     })) {
        t.target = target;
        return false;
      }
    plan.aimed_on = session_.calibration().aim_name;
    plan.predicted_bytes = session_.exact_bytes(plan);
    Trial t{.plan = std::move(plan), .target = target, .predicted = 0, .measured = 0};
    t.predicted = std::max(t.plan.predicted_kl / correction, 1e-12);
    const Model cut = session_.cut(t.plan);
    t.measured = session_.aim(session_.refine(t.plan, cut).model).kl_mean.value;
    notes_.push_back(fmt::format(
        "plan {}: {} bytes, predicted KL {:.4g}, measured {:.4g} on {}; {}", trials_.size() + 1,
        t.plan.predicted_bytes, t.plan.predicted_kl, t.measured, session_.calibration().aim_name,
        t.measured <= bound ? "within the bound" : "above the bound"));
    say_(notes_.back());
    trials_.push_back(std::move(t));
    return true;
  }

  const Trial* best(double bound) const {
    const Trial* found = nullptr;
    for (const Trial& t : trials_)
      if (t.measured <= bound && (!found || t.plan.predicted_bytes < found->plan.predicted_bytes))
        found = &t;
    return found;
  }
  // The largest that misses the bound, of those smaller than the best that keeps it.
  const Trial* nearest_miss(double bound) const {
    const Trial *fits = best(bound), *found = nullptr;
    for (const Trial& t : trials_)
      if (t.measured > bound && (!fits || t.plan.predicted_bytes < fits->plan.predicted_bytes) &&
          (!found || t.plan.predicted_bytes > found->plan.predicted_bytes))
        found = &t;
    return found;
  }

  Session& session_;
  const Goal& goal_;
  const std::function<void(const std::string&)>& say_;
  std::vector<std::string>& notes_;
  std::vector<Trial> trials_;
};

// Both ways, where the session has error feedback; the one that loses less on the windows set aside
// is left in the result.
void cut_with_or_without_feedback(Session& session, Result& result) {
  if (keeps_all(result.plan) || session.settings().feedback == Feedback::none) {
    result.cut = session.cut(result.plan);
    return;
  }
  // First what the plan's own measurements may have left at hand.
  result.cut = session.cut(result.plan, Feedback::none);
  const double without = session.prove(result.cut).kl_mean.value;
  result.cut = {};
  result.cut = session.cut(result.plan);
  const double with = session.prove(result.cut).kl_mean.value;
  const bool helps = with <= without;
  result.notes.push_back(fmt::format(
      "{}: mean KL {:.4g} without and {:.4g} with, on the text of the proof",
      helps ? "error feedback" : "error feedback did not help and is left out", without, with));
  if (helps) return;
  session.stop_feedback();
  result.plan.predicted_bytes = session.exact_bytes(result.plan);
  result.cut = {};
  result.cut = session.cut(result.plan);
}

void finish(Session& session, Result& result) {
  cut_with_or_without_feedback(session, result);
  refine_and_prove(session, result);
}

std::string how_by_layer(const Refined& r) {
  const std::string why =
      r.needed_bytes > 0
          ? fmt::format("a backward pass through the whole model takes about {} MB, {} MB are free",
                        r.needed_bytes / 1'000'000, std::max<int64_t>(0, r.room_bytes) / 1'000'000)
          : "as asked";
  return fmt::format(
      "refined layer by layer on the layers' outputs ({}), on {} windows of text; what is said "
      "next "
      "of its own text is of the steps after the last layer, on final norm and head",
      why, r.n_windows);
}

}  // namespace

void refine_and_prove(Session& session, Result& result) {
  Refined r = session.refine(result.plan, result.cut);
  result.refined = std::move(r.model);
  result.proof = session.prove(result.refined);
  if (r.losses.empty()) return;
  const Comparison before = session.prove(result.cut);
  if (r.by_layer) result.notes.push_back(how_by_layer(r));
  const std::string found = fmt::format(
      "{} {} on {} scales, {} norm gains and {} codes: mean KL {:.4g} before and {:.4g} after, "
      "on the text of the proof; on its own text {:.4g} over the first tenth of the steps, {:.4g} "
      "over the last",
      r.losses.size(), r.losses.size() == 1 ? "step" : "steps", r.n_scales, r.n_norms, r.n_codes,
      before.kl_mean.value, result.proof.kl_mean.value, r.first_loss(), r.last_loss());
  if (result.proof.kl_mean.value <= before.kl_mean.value) {
    result.notes.push_back("refined: " + found);
    return;
  }
  result.notes.push_back("refinement did not help and is left out: " + found);
  session.stop_refining();
  result.plan.predicted_bytes = session.exact_bytes(result.plan);
  result.refined = result.cut;
  result.proof = before;
}

Plan planned(Session& session, const Goal& goal, std::vector<std::string>& notes) {
  Plan plan = session.plan(goal);
  const auto budget = session.budget(goal);
  const double seconds = session.settings().search_seconds;
  if (!budget || seconds <= 0) return plan;
  Searched s = search_plan(session, plan, *budget, seconds);
  notes.push_back(fmt::format(
      "search: plans near the first measured on calibration text: {}, {} of them in an earlier "
      "search; better: {}; KL {:.4g} before and {:.4g} after; {}",
      s.n_measured, s.n_kept, s.n_better, s.kl_before, s.kl_after,
      s.ended ? "nothing more promised a gain" : "the time is up"));
  return std::move(s.plan);
}

Result carry_out(Session& session, const Goal& goal,
                 const std::function<void(const std::string&)>& say) {
  Result result;
  if (!goal.max_kl) {
    result.plan = planned(session, goal, result.notes);
    finish(session, result);
    return result;
  }
  Search search(session, goal, say, result.notes);
  const double bound = *goal.max_kl;
  double aim = bound;
  for (int proof = 1;; ++proof) {
    const Trial& found = search.smallest_within(aim);
    result.plan = found.plan;
    if (proof > 1) {
      result.plan.aimed_on += ", and the proof's";
      result.plan.predicted_bytes = session.exact_bytes(result.plan);
    }
    finish(session, result);
    const double proved = result.proof.kl_mean.value;
    if (proved <= bound || found.measured > aim || proof == kProofs) break;
    result.notes.push_back(fmt::format(
        "the proof missed the bound: {:.4g} on the windows set aside, {:.4g} on those that "
        "the plan was made against; planned again for less, so that the proof's text decided too",
        proved, found.measured));
    say(result.notes.back());
    aim = 0.995 * bound * found.measured / proved;
  }
  return result;
}

}  // namespace mt
