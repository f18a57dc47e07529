#include "compress/plan_search.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/files.h"
#include "base/progress.h"
#include "measure/place_loss.h"

namespace mt {
namespace {

constexpr int64_t kTokens = 2048;
constexpr int64_t kLogitBytes = int64_t{1} << 30;  // of the original's, which are kept
constexpr double kDoubt = 0.25;  // of the losses exchanged: what a prediction may err by
constexpr double kMostKl = 1e3;  // a kept figure above it is damaged
constexpr double kFall = 1e-3;   // of the KL: less than this is no gain

// A place in use, and the option it has.
struct Held {
  size_t place;
  size_t option;
  bool operator==(const Held&) const = default;
};
struct Change {
  size_t held;  // index into the held places
  size_t option;
};
struct Move {
  std::vector<Change> changes;  // of one place or of two
  double promise = 0;           // nats a token, less is better
};

class Search {
 public:
  Search(Session& session, const Plan& plan, int64_t budget, double seconds)
      : rt_(session.runtime()),
        session_(session),
        problem_(session.problem()),
        plan_(plan),
        slack_(budget - plan.predicted_bytes - session.unwritten_bias_bytes(plan)),
        seconds_(seconds) {
    for (const Decision& d : plan.decisions) {
      const std::string key = session.key_of(plan, d.place);
      size_t i = 0;
      while (i < problem_.places.size() && session.candidates().all[i].key != key) ++i;
      if (i == problem_.places.size()) throw_error("the plan names '{}', unknown here", d.place);
      const auto& options = problem_.places[i].options;
      size_t o = 0;
      while (o < options.size() && options[o].dtype != d.chosen.dtype) ++o;
      if (o == options.size())
        throw_error("'{}': {} is not on offer", d.place, name(d.chosen.dtype));
      held_.push_back({i, o});
    }
    standing_at_ = last_at_ = held_;
    for (const Place& place : problem_.places) {
      auto& losses = loss_.emplace_back();
      for (const Option& option : place.options) losses.push_back(option.loss);
      trials_.emplace_back(place.options.size(), 0);
    }
    const int64_t most = std::min(kTokens, kLogitBytes / (4 * session.model().n_vocab));
    int64_t tokens = 0;
    for (const auto& window : session.calibration().windows) {
      if (tokens > 0 && tokens + std::ssize(window) > most) break;
      windows_.push_back(window);
      tokens += std::ssize(window);
    }
  }

  Searched run() {
    Searched result;
    Progress progress("searching", static_cast<uint64_t>(std::ceil(seconds_)));
    tried_.insert(name_of(held_));
    double now = measured(held_);
    result.kl_before = now;
    while (seconds_ > spent_) {
      const auto move = most_promising();
      if (!move) {
        result.ended = true;
        break;
      }
      std::vector<Held> other = held_;
      double predicted = 0;
      for (const Change& c : move->changes) {
        Held& h = other[c.held];
        predicted += loss_[h.place][c.option] - loss_[h.place][h.option];
        h.option = c.option;
      }
      tried_.insert(name_of(other));
      const double before = spent_;
      const double kl = measured(other);
      ++result.n_measured;
      result.n_kept += spent_ == before;
      for (const Change& c : move->changes) {
        const size_t place = held_[c.held].place;
        loss_[place][c.option] += (kl - now - predicted) / double(move->changes.size());
        ++trials_[place][c.option];
      }
      if (kl < now * (1 - kFall)) {
        slack_ -= bytes(other) - bytes(held_);
        held_ = std::move(other);
        now = kl;
        ++result.n_better;
      }
      progress.advance(static_cast<uint64_t>(std::floor(spent_) - std::floor(before)));
    }
    result.kl_after = now;
    result.plan = plan_;
    double change = 0;
    for (size_t i = 0; i < held_.size(); ++i) {
      const Place& place = problem_.places[held_[i].place];
      const Option& option = place.options[held_[i].option];
      Decision& d = result.plan.decisions[i];
      if (d.chosen.dtype == option.dtype) continue;
      change += option.loss - d.chosen.loss;
      const std::string tensor = d.place;
      d = decide(place, option);
      d.place = tensor;
    }
    result.plan.predicted_kl += change;
    if (result.n_better > 0) result.plan.optimality_gap = -1;
    result.plan.predicted_bytes = session_.exact_bytes(result.plan);
    return result;
  }

 private:
  int64_t bytes(const std::vector<Held>& held) const {
    int64_t total = 0;
    for (const Held& h : held) total += problem_.places[h.place].options[h.option].bytes;
    return total;
  }

  // Under which a trial is kept.
  std::string name_of(const std::vector<Held>& held) const {
    std::string text;
    for (const Held& h : held)
      text += fmt::format("{} {}\n", session_.candidates().all[h.place].key,
                          name(problem_.places[h.place].options[h.option].dtype));
    return sha256_hex(text);
  }

  Weight weight(const Held& h) const {
    const Candidate& c = session_.candidates().all[h.place];
    const Option& option = problem_.places[h.place].options[h.option];
    return option.keep ? c.source : encode_weight(rt_, c.source, option.dtype, c.weights);
  }

  LinearMap& map_of(Model& model, const Held& h) const {
    for (LinearMap* map : linear_maps(model))
      if (map->name == session_.candidates().all[h.place].tensor) return *map;
    throw_error("'{}' is no map", session_.candidates().all[h.place].tensor);
  }

  // The plan's model with the places changed in which `to` differs from `from`.
  void change(Model& model, const std::vector<Held>& from, const std::vector<Held>& to) const {
    for (size_t i = 0; i < to.size(); ++i)
      if (to[i] != from[i]) map_of(model, to[i]).weight = weight(to[i]);
  }

  double measured(const std::vector<Held>& held) {
    const std::string key = name_of(held);
    if (const auto kept = session_.db().value("search", "search_kl", key);
        kept && *kept >= 0 && *kept <= kMostKl)
      return *kept;
    const auto start = std::chrono::steady_clock::now();
    if (!loss_of_) {
      loss_of_ = std::make_unique<PlaceLoss>(rt_, session_.model(), windows_);
      standing_ = session_.rounded(plan_);  // a bias is of one rounding
      loss_of_->stand_on(standing_);
    }
    if (standing_at_ != held_) {
      if (last_at_ == held_)
        standing_ = last_;
      else
        change(standing_, standing_at_, held_);
      standing_at_ = held_;
      loss_of_->stand_on(standing_);
    }
    last_ = standing_;
    last_at_ = held;
    change(last_, standing_at_, held);
    const double kl = loss_of_->measure(last_);
    session_.db().put("search", "search_kl", key, kl);
    spent_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return kl;
  }

  struct Leg {
    Change change;
    int64_t bytes;
    double loss, promise;  // predicted change, and that less what it may err by
  };

  std::optional<Move> most_promising() const {
    std::vector<Leg> dearer, cheaper;
    std::optional<Move> best;
    auto consider = [&](double promise, std::initializer_list<Change> changes) {
      if (!(promise < (best ? best->promise : 0))) return;
      std::vector<Held> other = held_;
      for (const Change& c : changes) other[c.held].option = c.option;
      if (!tried_.contains(name_of(other))) best = {changes, promise};
    };
    for (size_t i = 0; i < held_.size(); ++i) {
      const auto& options = problem_.places[held_[i].place].options;
      const auto& losses = loss_[held_[i].place];
      for (size_t o = 0; o < options.size(); ++o) {
        if (o == held_[i].option) continue;
        const double loss = losses[o] - losses[held_[i].option];
        const Leg leg{
            .change = {i, o},
            .bytes = options[o].bytes - options[held_[i].option].bytes,
            .loss = loss,
            .promise = loss - kDoubt * std::fabs(loss) / (1 + trials_[held_[i].place][o])};
        if (leg.bytes <= slack_) consider(leg.promise, {leg.change});
        (leg.bytes > 0 ? dearer : cheaper).push_back(leg);
      }
    }
    for (const Leg& up : dearer)
      for (const Leg& down : cheaper)
        if (up.change.held != down.change.held && up.bytes + down.bytes <= slack_)
          consider(up.promise + down.promise, {up.change, down.change});
    return best;
  }

  const Runtime& rt_;
  Session& session_;
  const Problem& problem_;
  const Plan& plan_;
  int64_t slack_;  // bytes that are left
  double seconds_, spent_ = 0;
  std::vector<Held> held_;                 // decision by decision
  std::vector<std::vector<double>> loss_;  // [place][option], as trials corrected it
  std::vector<std::vector<int>> trials_;   // [place][option]
  std::set<std::string> tried_;
  Windows windows_;
  std::unique_ptr<PlaceLoss> loss_of_;
  Model standing_, last_;  // what PlaceLoss stands on; the last trial
  std::vector<Held> standing_at_, last_at_;
};

}  // namespace

Searched search_plan(Session& session, const Plan& plan, int64_t budget, double seconds) {
  return Search(session, plan, budget, seconds).run();
}

}  // namespace mt
