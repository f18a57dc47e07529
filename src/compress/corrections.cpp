#include "compress/corrections.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "base/files.h"
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

// A mean of ratios: geometric.
struct RatioMean {
  double logs = 0, weights = 0;
  void add(double ratio, double weight = 1) {
    logs += weight * std::log(ratio);
    weights += weight;
  }
  double value() const { return weights > 0 ? std::exp(logs / weights) : 1.0; }
};

}  // namespace

PlaceOptions sampled_places(const Candidates& candidates,
                            const std::vector<std::vector<double>>& losses, int64_t n_measured) {
  PlaceOptions work;
  if (n_measured <= 0) return work;
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
  return work;
}

Windows windows_of_text(const Windows& windows) {
  constexpr int64_t kTokens = 3072;
  size_t n = 0;
  for (int64_t read = 0; n < windows.size() && read < kTokens; ++n) read += std::ssize(windows[n]);
  return Windows(windows.begin(), windows.begin() + static_cast<ptrdiff_t>(n));
}

namespace {

// Mean KL of a cut on every window, kept in `db` as `metric` under `what`; `cut` is called once at
// most. A window at a time: the original's log-probabilities of all would be too many.
std::vector<double> window_losses(const Runtime& rt, const Model& model,
                                  const std::function<Model()>& cut, const Windows& windows,
                                  const std::string& place, const std::string& metric,
                                  const std::string& what, const std::string& label,
                                  Measurements& db) {
  std::optional<Model> made;
  std::vector<double> losses;
  Progress progress(label, windows.size());
  for (size_t w = 0; w < windows.size(); ++w) {
    const std::string setting = fmt::format("{} window {}", sha256_hex(what), w);
    auto measured = db.value(place, metric, setting);
    if (!measured || !std::isfinite(*measured) || *measured < 0) {
      if (!made) made = cut();
      measured = std::max(0.0, PlaceLoss(rt, model, {windows[w]}).measure(*made));
      db.put(place, metric, setting, *measured);
    }
    losses.push_back(*measured);
    progress.advance();
  }
  return losses;
}

// Over the tokens of the first n windows.
double mean_loss(const std::vector<double>& losses, const Windows& windows, size_t n) {
  double sum = 0, tokens = 0;
  for (size_t w = 0; w < std::min(n, losses.size()); ++w) {
    sum += losses[w] * double(windows[w].size());
    tokens += double(windows[w].size());
  }
  return tokens > 0 ? sum / tokens : 0;
}

// What a plan writes, of one role or of all: the places, and a text that names it all.
std::pair<std::set<std::string>, std::string> written(const Plan& plan, const std::string& role) {
  std::set<std::string> places;
  std::string text = plan.tied_source + "\n";
  for (const Decision& d : plan.decisions)
    if (!d.chosen.keep && (role.empty() || role_of(d.place).role == role)) {
      places.insert(d.place);
      text += fmt::format("{} {}\n", d.place, name(d.chosen.dtype));
    }
  return {places, text};
}

}  // namespace

std::map<std::string, double> role_losses(const Runtime& rt, const Model& model, const Plan& plan,
                                          const std::function<Model()>& cut,
                                          const std::set<std::string>& roles,
                                          const Windows& windows, Measurements& db) {
  std::map<std::string, double> losses;
  std::optional<Model> whole;
  std::unique_ptr<PlaceLoss> place_loss;
  Progress progress("measuring roles", roles.size());
  for (const std::string& role : roles) {
    const auto& [places, text] = written(plan, role);
    const std::string setting = sha256_hex(text);
    auto measured = db.value(role, "role_kl", setting);
    if (!measured || !std::isfinite(*measured) || *measured < 0) {
      if (!whole) whole = cut();
      if (!place_loss) place_loss = std::make_unique<PlaceLoss>(rt, model, windows);
      Model part = model;
      std::map<std::string, Weight> rounded;
      for (const LinearMap* map : linear_maps(std::as_const(*whole)))
        rounded[map->name] = map->weight;
      for (LinearMap* map : linear_maps(part))
        if (places.contains(map->name)) map->weight = rounded.at(map->name);
      measured = std::max(0.0, place_loss->measure(part));
      db.put(role, "role_kl", setting, *measured);
    }
    losses[role] = *measured;
    progress.advance();
  }
  return losses;
}

double whole_loss(const Runtime& rt, const Model& model, const Plan& plan,
                  const std::function<Model()>& cut, const Windows& windows, Measurements& db) {
  return mean_loss(window_losses(rt, model, cut, windows, "plan", "whole_kl",
                                 written(plan, "").second, "measuring the plan", db),
                   windows, windows.size());
}

double text_factor(const Runtime& rt, const Model& model, const Windows& windows,
                   const Candidates& candidates, const std::vector<std::vector<double>>& losses,
                   const PlaceOptions& places, Measurements& db) {
  std::map<size_t, size_t> formats;  // by candidate
  std::string all;
  for (const auto& [i, o] : places)
    if (nearest_option(candidates.all[i], losses[i], false) == o && formats.emplace(i, o).second)
      all += fmt::format("{} {}\n", candidates.all[i].key, name(candidates.all[i].dtypes[o]));
  if (formats.empty() || std::ssize(windows) <= kWindowsOfPlaces) return 1;

  auto cut = [&] {
    Model part = model;
    for (const auto& [i, o] : formats) {
      const Candidate& c = candidates.all[i];
      for (LinearMap* map : linear_maps(part))
        if (map->name == c.tensor)
          map->weight = encode_weight(rt, c.source, c.dtypes[o], c.weights);
    }
    return part;
  };
  const Windows text = windows_of_text(windows);
  const auto kl =
      window_losses(rt, model, cut, text, "text", "sampled_kl", all, "measuring the text", db);
  const double few = mean_loss(kl, text, kWindowsOfPlaces), whole = mean_loss(kl, text, kl.size());
  return few > 0 && whole > 0 ? whole / few : 1;
}

std::vector<std::vector<double>> measure_corrections(const Runtime& rt, const Model& model,
                                                     const Windows& windows,
                                                     const Candidates& candidates,
                                                     const std::vector<std::vector<double>>& losses,
                                                     const PlaceOptions& places, Measurements& db) {
  const size_t n = candidates.all.size();
  // Measured over predicted: of every option, and one for each candidate on either side.
  std::vector<std::map<size_t, double>> exact(n);
  std::vector<std::optional<double>> high(n), low(n);
  std::unique_ptr<PlaceLoss> place_loss;
  Progress progress("measuring places", places.size());
  for (const auto& [i, o] : places) {
    const Candidate& c = candidates.all[i];
    const std::string setting(name(c.dtypes[o]));
    auto measured = db.value(c.key, "measured_kl", setting);
    if (!measured || !std::isfinite(*measured) || *measured <= 0) {  // not there, or damaged
      if (!place_loss) place_loss = std::make_unique<PlaceLoss>(rt, model, windows);
      measured = place_loss->measure(c.tensor, encode_weight(rt, c.source, c.dtypes[o], c.weights));
      db.put(c.key, "measured_kl", setting, *measured);
    }
    // Below this, rounding of f32 sums shows as much as the cut.
    if (*measured > 1e-6 && losses[i][o] > 0) {
      exact[i][o] = *measured / losses[i][o];
      auto& side = (is_low(c.dtypes[o]) ? low : high)[i];
      if (!side || nearest_option(c, losses[i], is_low(c.dtypes[o])) == o) side = exact[i][o];
    }
    progress.advance();
  }

  // A layer's ratio holds for every format, but for what is lost in addition below three bits: one
  // factor for the role, from where both were measured. (Gemma 3's `ffn_down` maps have ratios from
  // 1/70 to 2/3; a low format taken at one layer's ratio alone cost twenty times its prediction.)
  std::vector<TensorRole> roles;
  for (const Candidate& c : candidates.all) roles.push_back(role_of(c.tensor));
  std::map<std::string, RatioMean> extra;
  for (size_t i = 0; i < n; ++i)
    if (high[i] && low[i]) extra[roles[i].role].add(*low[i] / *high[i]);
  for (size_t i = 0; i < n; ++i)
    if (low[i] && !high[i]) high[i] = *low[i] / extra[roles[i].role].value();

  std::vector<std::vector<double>> correction(n);
  for (size_t i = 0; i < n; ++i) {
    const Candidate& c = candidates.all[i];
    RatioMean near;
    for (size_t j = 0; j < n; ++j)
      if (high[j] && roles[j].role == roles[i].role)
        near.add(*high[j], 1.0 / (1.0 + std::fabs(double(roles[i].layer - roles[j].layer))));
    const double own = high[i].value_or(near.value());
    const double below = low[i].value_or(own * extra[roles[i].role].value());
    // The first option costs nothing; it carries what holds for the dearer ones.
    correction[i].assign(c.dtypes.size(), own);
    for (size_t o = 1; o < c.dtypes.size(); ++o) {
      const auto found = exact[i].find(o);
      if (found != exact[i].end())
        correction[i][o] = found->second;
      else if (is_low(c.dtypes[o]))
        correction[i][o] = below;
    }
  }
  return correction;
}

}  // namespace mt
