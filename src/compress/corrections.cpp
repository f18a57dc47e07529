#include "compress/corrections.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>

#include "base/progress.h"
#include "measure/place_loss.h"

namespace mt {

TensorRole role_of(const std::string& tensor) {
  std::string stem = tensor;
  if (stem.ends_with(".weight")) stem.resize(stem.size() - 7);
  if (!stem.starts_with("blk.")) return {-1, stem};
  const size_t dot = stem.find('.', 4);
  if (dot == std::string::npos) return {-1, stem};
  const std::string number = stem.substr(4, dot - 4);
  if (number.empty() || number.size() > 6 ||
      number.find_first_not_of("0123456789") != std::string::npos)
    return {-1, stem};
  return {std::stoll(number), stem.substr(dot + 1)};
}

namespace {

// Formats of fewer bits err in larger steps, where the loss is no longer a quadratic.
constexpr double kLowBits = 3.0;
// Nats a token that the prediction for an embedding or a head may say before it is checked.
constexpr double kMuch = 0.02;
bool is_low(Dtype dtype) {
  return info(dtype).bits_per_weight() < kLowBits;
}

// The option nearest to so many bits, on its side of kLowBits, that costs something.
std::optional<size_t> nearest_option(const Candidate& c, const std::vector<double>& losses,
                                     bool low) {
  std::optional<size_t> best;
  for (size_t o = 1; o < c.dtypes.size(); ++o) {
    if (!(losses[o] > 0) || is_low(c.dtypes[o]) != low) continue;
    auto distance = [&](size_t i) {
      return std::fabs(info(c.dtypes[i]).bits_per_weight() - (low ? 2.4 : 4.4));
    };
    if (!best || distance(o) < distance(*best)) best = o;
  }
  return best;
}

// Which candidates to measure: indices, the most important first.
std::vector<size_t> choose(const Candidates& candidates, int64_t n) {
  std::vector<size_t> chosen;
  std::map<std::string, std::vector<size_t>> by_role;  // in order of layers
  for (size_t i = 0; i < candidates.all.size(); ++i) {
    const Candidate& c = candidates.all[i];
    const TensorRole r = role_of(c.tensor);
    if (r.layer >= 0)
      by_role[r.role].push_back(i);
    else if (c.key == c.tensor)  // a tensor shared by a plan alone has no place of its own
      chosen.push_back(i);
  }
  if (by_role.empty()) return chosen;
  const int64_t each = std::max<int64_t>(1, (n - std::ssize(chosen)) / std::ssize(by_role));
  for (const auto& [role, places] : by_role) {
    const int64_t count = std::min<int64_t>(each, std::ssize(places));
    for (int64_t k = 0; k < count; ++k)
      chosen.push_back(places[static_cast<size_t>((2 * k + 1) * std::ssize(places) / (2 * count))]);
  }
  return chosen;
}

}  // namespace

std::vector<std::vector<double>> measure_corrections(const Runtime& rt, const Model& model,
                                                     const Windows& windows,
                                                     const Candidates& candidates,
                                                     const std::vector<std::vector<double>>& losses,
                                                     int64_t n_measured, Measurements& db,
                                                     const PlaceOptions& more) {
  const size_t n = candidates.all.size();
  std::vector<std::vector<double>> correction;
  for (const auto& of_candidate : losses) correction.emplace_back(of_candidate.size(), 1.0);
  if (n_measured <= 0) return correction;

  PlaceOptions work;
  for (size_t i : choose(candidates, n_measured)) {
    const Candidate& c = candidates.all[i];
    if (role_of(c.tensor).layer < 0) {  // much hangs on it: every format that costs much
      for (size_t o = 1; o < c.dtypes.size(); ++o)
        if (losses[i][o] > kMuch || nearest_option(c, losses[i], false) == o)
          work.push_back({i, o});
    } else if (auto o = nearest_option(c, losses[i], false)) {
      work.push_back({i, *o});
    }
  }
  for (size_t i : choose(candidates, n_measured / 2))
    if (role_of(candidates.all[i].tensor).layer >= 0)
      if (auto o = nearest_option(candidates.all[i], losses[i], true)) work.push_back({i, *o});

  work.insert(work.end(), more.begin(), more.end());

  // Measured over predicted: of every option, and one for each candidate on either side.
  std::vector<std::map<size_t, double>> exact(n);
  std::vector<std::optional<double>> ratio[2] = {std::vector<std::optional<double>>(n),
                                                 std::vector<std::optional<double>>(n)};
  std::unique_ptr<PlaceLoss> place_loss;
  Progress progress("measuring places", work.size());
  for (const auto& [i, o] : work) {
    const Candidate& c = candidates.all[i];
    const std::string setting(name(c.dtypes[o]));
    auto measured = db.value(c.key, "measured_kl", setting);
    if (!measured || !std::isfinite(*measured) || *measured <= 0) {  // not there, or damaged
      if (!place_loss) place_loss = std::make_unique<PlaceLoss>(rt, model, windows);
      measured = place_loss->measure(c.tensor, encode_weight(rt, c.source, c.dtypes[o], c.weights));
      db.put(c.key, "measured_kl", setting, *measured);
    }
    // Below this, rounding of f32 sums shows as much as the cut.
    if (*measured > 1e-6) {
      exact[i][o] = *measured / losses[i][o];
      const bool low = is_low(c.dtypes[o]);
      if (nearest_option(c, losses[i], low) == o || !ratio[low][i]) ratio[low][i] = exact[i][o];
    }
    progress.advance();
  }

  // A layer's ratio holds for every format, but for what is lost in addition below three bits: one
  // factor for the role, from where both were measured. (Gemma 3's `ffn_down` maps have ratios from
  // 1/70 to 2/3; a low format taken at one layer's ratio alone cost twenty times its prediction.)
  std::map<std::string, std::pair<double, int>> extra;  // sum of logarithms, how many
  for (size_t i = 0; i < n; ++i)
    if (ratio[0][i] && ratio[1][i]) {
      auto& [sum, count] = extra[role_of(candidates.all[i].tensor).role];
      sum += std::log(*ratio[1][i] / *ratio[0][i]);
      ++count;
    }
  for (size_t i = 0; i < n; ++i)
    if (ratio[1][i] && !ratio[0][i]) {
      const auto& [logs, count] = extra[role_of(candidates.all[i].tensor).role];
      ratio[0][i] = *ratio[1][i] / (count > 0 ? std::exp(logs / count) : 1.0);
    }
  for (const bool low : {false, true})
    for (size_t i = 0; i < n; ++i) {
      const Candidate& c = candidates.all[i];
      double found = ratio[low][i].value_or(0);
      if (!ratio[low][i]) {
        const TensorRole here = role_of(c.tensor);
        double sum = 0, weight = 0;
        for (size_t j = 0; j < n && !low; ++j) {
          if (!ratio[0][j]) continue;
          const TensorRole there = role_of(candidates.all[j].tensor);
          if (there.role != here.role) continue;
          const double w = 1.0 / (1.0 + std::fabs(double(here.layer - there.layer)));
          sum += w * std::log(*ratio[0][j]);
          weight += w;
        }
        if (low) {
          const auto& [logs, count] = extra[here.role];
          found = correction[i][0] * (count > 0 ? std::exp(logs / count) : 1.0);
        } else {
          found = weight > 0 ? std::exp(sum / weight) : 1.0;
        }
      }
      // The first option costs nothing; it carries what holds for the dearer ones.
      if (!low) correction[i][0] = found;
      for (size_t o = 1; o < c.dtypes.size(); ++o)
        if (is_low(c.dtypes[o]) == low)
          correction[i][o] = exact[i].contains(o) ? exact[i][o] : found;
    }
  return correction;
}

}  // namespace mt
