#include "run/sample.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/random.h"

namespace mt {
namespace {

bool likelier(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.id < b.id;
}

void penalise(std::vector<Candidate>& all, std::span<const int32_t> recent, double penalty) {
  if (penalty == 1) return;
  std::vector<int32_t> ids(recent.begin(), recent.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  for (int32_t id : ids) {
    if (id < 0 || id >= std::ssize(all)) continue;
    double& logit = all[static_cast<size_t>(id)].value;
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
}

// exp(logit / temperature - largest), not normalised; returns their sum. list: likeliest first.
double weigh(std::vector<Candidate>& list, double temperature) {
  double top = list.front().value, sum = 0;
  for (Candidate& c : list) {
    // The first is 1 whatever its logit: -inf less -inf is no number.
    c.value = &c == &list.front() ? 1.0 : std::exp((c.value - top) / temperature);
    sum += c.value;
  }
  return sum;
}

}  // namespace

std::vector<Candidate> candidates(std::span<const float> logits, std::span<const int32_t> recent,
                                  const SampleOptions& options) {
  assert(!logits.empty());
  std::vector<Candidate> list(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    float x = logits[i];
    list[i] = {static_cast<int32_t>(i),
               std::isnan(x) ? -std::numeric_limits<double>::infinity() : double(x)};
  }
  penalise(list, recent, options.repeat_penalty);
  if (options.temperature <= 0) {
    Candidate best = *std::min_element(list.begin(), list.end(), likelier);
    return {{best.id, 1.0}};
  }

  size_t keep =
      options.top_k > 0 ? std::min(list.size(), static_cast<size_t>(options.top_k)) : list.size();
  std::partial_sort(list.begin(), list.begin() + static_cast<std::ptrdiff_t>(keep), list.end(),
                    likelier);
  list.resize(keep);

  if (options.top_p < 1) {
    std::vector<Candidate> weights = list;
    double sum = weigh(weights, 1), held = 0;
    size_t n = 0;
    while (n < weights.size()) {
      held += weights[n++].value / sum;
      if (held >= options.top_p) break;
    }
    list.resize(std::max<size_t>(n, 1));
  }
  if (options.min_p > 0) {
    // p >= min_p * p_max, in logits.
    double least = list.front().value + std::log(options.min_p);
    size_t n = 1;
    while (n < list.size() && list[n].value >= least) ++n;
    list.resize(n);
  }
  double sum = weigh(list, options.temperature);
  for (Candidate& c : list) c.value /= sum;
  return list;
}

void Sampler::accept(int32_t id) {
  recent_.push_back(id);
  if (options_.repeat_last >= 0 && std::ssize(recent_) > options_.repeat_last) recent_.pop_front();
}

int32_t Sampler::draw(std::span<const float> logits) {
  std::vector<int32_t> recent(recent_.begin(), recent_.end());
  std::vector<Candidate> list = candidates(logits, recent, options_);
  if (!std::isfinite(logits[static_cast<size_t>(list.front().id)]))
    throw Error(
        "the model's logits are not finite: its weights are damaged (NaN, infinite or far too "
        "large)");
  double u = random_uniform(options_.seed, 0, n_drawn_++), passed = 0;
  for (const Candidate& c : list) {
    passed += c.value;
    if (u < passed) return c.id;
  }
  return list.back().id;  // the sum may round to just below 1
}

}  // namespace mt
