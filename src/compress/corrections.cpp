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

// The option nearest to four bits that costs something; nothing where all are free.
std::optional<size_t> about_four_bits(const Candidate& c, const std::vector<double>& losses) {
  std::optional<size_t> best;
  for (size_t o = 1; o < c.dtypes.size(); ++o) {
    if (!(losses[o] > 0)) continue;
    auto distance = [&](size_t i) { return std::fabs(info(c.dtypes[i]).bits_per_weight() - 4.4); };
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

std::vector<double> measure_corrections(const Runtime& rt, const Model& model,
                                        const Windows& windows, const Candidates& candidates,
                                        const std::vector<std::vector<double>>& losses,
                                        int64_t n_measured, Measurements& db) {
  std::vector<double> correction(candidates.all.size(), 1.0);
  if (n_measured <= 0) return correction;
  std::vector<std::optional<double>> ratio(candidates.all.size());
  const auto chosen = choose(candidates, n_measured);
  std::unique_ptr<PlaceLoss> place_loss;
  Progress progress("measuring places", chosen.size());
  for (size_t i : chosen) {
    const Candidate& c = candidates.all[i];
    if (auto o = about_four_bits(c, losses[i])) {
      const std::string setting(name(c.dtypes[*o]));
      auto measured = db.value(c.key, "measured_kl", setting);
      if (!measured || !std::isfinite(*measured)) {
        if (!place_loss) place_loss = std::make_unique<PlaceLoss>(rt, model, windows);
        measured =
            place_loss->measure(c.tensor, encode_weight(rt, c.source, c.dtypes[*o], c.weights));
        db.put(c.key, "measured_kl", setting, *measured);
      }
      // Below this, rounding of f32 sums shows as much as the cut.
      if (*measured > 1e-6) ratio[i] = *measured / losses[i][*o];
    }
    progress.advance();
  }

  for (size_t i = 0; i < candidates.all.size(); ++i) {
    if (ratio[i]) {
      correction[i] = *ratio[i];
      continue;
    }
    const TensorRole here = role_of(candidates.all[i].tensor);
    double sum = 0, weight = 0;
    for (size_t j = 0; j < ratio.size(); ++j) {
      if (!ratio[j]) continue;
      const TensorRole there = role_of(candidates.all[j].tensor);
      if (there.role != here.role) continue;
      const double w = 1.0 / (1.0 + std::fabs(double(here.layer - there.layer)));
      sum += w * std::log(*ratio[j]);
      weight += w;
    }
    if (weight > 0) correction[i] = std::exp(sum / weight);
  }
  return correction;
}

}  // namespace mt
