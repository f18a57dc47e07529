#include "measure/eval_stats.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>

#include "base/error.h"
#include "base/random.h"

namespace mt {
namespace {

constexpr size_t kQuantiles = 5;
constexpr std::array<double, kQuantiles> kShares = {0.5, 0.9, 0.99, 0.999, 1.0};

// Sums over one window's tokens, in their order.
struct Sums {
  double n = 0, nll = 0, base_nll = 0, kl = 0, same = 0, dp = 0, dp2 = 0;
};

Sums sums_of(const WindowStats& w) {
  Sums s{.n = static_cast<double>(w.nll.size())};
  for (float x : w.nll) s.nll += x;
  for (float x : w.base_nll) s.base_nll += x;
  for (float x : w.kl) s.kl += x;
  for (float x : w.same_top) s.same += x;
  for (float x : w.dp) s.dp += x, s.dp2 += double(x) * x;
  return s;
}

void add(Sums& to, const Sums& s, double times) {
  to.n += times * s.n;
  to.nll += times * s.nll;
  to.base_nll += times * s.base_nll;
  to.kl += times * s.kl;
  to.same += times * s.same;
  to.dp += times * s.dp;
  to.dp2 += times * s.dp2;
}

// Every estimate of one sample of windows.
struct Values {
  double perplexity = 0, base_perplexity = 0, kl_mean = 0, same_top = 0, dp_mean = 0, dp_rms = 0;
  std::array<double, kQuantiles> kl{};
};

Values values_of(const Sums& s) {
  return {.perplexity = std::exp(s.nll / s.n),
          .base_perplexity = std::exp(s.base_nll / s.n),
          .kl_mean = s.kl / s.n,
          .same_top = s.same / s.n,
          .dp_mean = s.dp / s.n,
          .dp_rms = std::sqrt(s.dp2 / s.n)};
}

struct Ranked {
  float value;
  uint32_t window;
};

// Quantiles of the sample that takes the tokens of window w times[w] times, in one walk over all
// tokens ascending.
std::array<double, kQuantiles> sample_quantiles(std::span<const Ranked> ascending,
                                                std::span<const uint32_t> times, int64_t n) {
  std::array<double, kQuantiles> out{};
  int64_t passed = 0;  // tokens of the sample before the current one
  size_t next = 0;     // quantile whose lower neighbour is sought
  size_t open = 0;     // quantile that waits for its upper neighbour
  for (const Ranked& token : ascending) {
    int64_t t = times[token.window];
    if (t == 0) continue;
    passed += t;
    // This value has the places passed-t .. passed-1.
    for (; open < next; ++open) {
      double at = kShares[open] * static_cast<double>(n - 1);
      double share = at - std::floor(at);
      out[open] += share * (token.value - out[open]);
    }
    while (next < kQuantiles) {
      double at = kShares[next] * static_cast<double>(n - 1);
      auto below = static_cast<int64_t>(std::floor(at));
      if (below >= passed) break;
      out[next] = token.value;
      // The upper neighbour is this value too, or there is none.
      bool closed = below + 1 < passed || below + 1 >= n;
      ++next;
      if (closed && open == next - 1) open = next;
    }
    if (open == kQuantiles) break;
  }
  return out;
}

Estimate estimate(double value, std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  auto at = [&](double share) {
    double place = share * static_cast<double>(samples.size() - 1);
    auto i = static_cast<size_t>(place);
    double upper = samples[std::min(i + 1, samples.size() - 1)];
    return samples[i] + (place - static_cast<double>(i)) * (upper - samples[i]);
  };
  return {.value = value, .low = at(0.025), .high = at(0.975)};
}

// Standard error of the mean of all tokens' values.
double standard_error(std::span<const WindowStats> windows, std::vector<float> WindowStats::*field,
                      double mean) {
  double squares = 0, n = 0;
  for (const WindowStats& w : windows)
    for (float x : w.*field) squares += (x - mean) * (x - mean), n += 1;
  return n > 1 ? std::sqrt(squares / n / (n - 1)) : 0;
}

}  // namespace

std::vector<float> WindowStats::pack() const {
  std::vector<float> packed{static_cast<float>(nll.size()), has_base() ? 1.0f : 0.0f};
  for (const auto* v : {&nll, &base_nll, &kl, &dp, &same_top})
    packed.insert(packed.end(), v->begin(), v->end());
  return packed;
}

WindowStats WindowStats::unpack(std::span<const float> packed) {
  auto refuse = [&] {
    throw_error("stored window: expected a count, a flag and their values, found {} numbers",
                packed.size());
  };
  // The count is compared as a float first: it may be anything.
  if (packed.size() < 2 || !(packed[0] >= 0 && packed[0] <= float(packed.size())) ||
      (packed[1] != 0 && packed[1] != 1))
    refuse();
  auto n = static_cast<size_t>(packed[0]);
  bool base = packed[1] == 1;
  if (packed.size() != 2 + n * (base ? 5 : 1)) refuse();
  WindowStats w;
  size_t at = 2;
  auto take = [&](std::vector<float>& to) {
    to.assign(packed.begin() + static_cast<std::ptrdiff_t>(at),
              packed.begin() + static_cast<std::ptrdiff_t>(at + n));
    at += n;
  };
  take(w.nll);
  if (base)
    for (auto* v : {&w.base_nll, &w.kl, &w.dp, &w.same_top}) take(*v);
  // Rounding may take what cannot be below 0 a little below it.
  constexpr float kSlack = 1e-3f;
  auto check = [](const std::vector<float>& values, float low, float high) {
    for (float x : values)
      if (!(x >= low && x <= high)) throw_error("stored window: a figure of {} is impossible", x);
  };
  constexpr float kMost = 1e4f;  // nats a token
  for (const auto* v : {&w.nll, &w.base_nll, &w.kl}) check(*v, -kSlack, kMost);
  check(w.dp, -1 - kSlack, 1 + kSlack);
  check(w.same_top, 0, 1);
  return w;
}

double quantile(std::span<const float> ascending, double share) {
  assert(!ascending.empty() && share >= 0 && share <= 1);
  double at = share * static_cast<double>(ascending.size() - 1);
  auto i = static_cast<size_t>(at);
  double upper = ascending[std::min(i + 1, ascending.size() - 1)];
  return ascending[i] + (at - static_cast<double>(i)) * (upper - ascending[i]);
}

Summary summarise(ThreadPool& pool, std::span<const WindowStats> windows, uint64_t seed,
                  int resamples) {
  Sums all;
  std::vector<Sums> parts;
  std::vector<Ranked> ranked;
  for (const WindowStats& w : windows) {
    assert(w.has_base() == windows[0].has_base());
    parts.push_back(sums_of(w));
    add(all, parts.back(), 1);
    for (float x : w.kl) ranked.push_back({x, static_cast<uint32_t>(parts.size() - 1)});
  }
  if (all.n == 0) throw Error("nothing to measure: no window of text has a scored token");
  std::sort(ranked.begin(), ranked.end(), [](const Ranked& a, const Ranked& b) {
    return a.value != b.value ? a.value < b.value : a.window < b.window;
  });
  bool base = !ranked.empty();

  auto draw = [&](std::span<const uint32_t> times) {
    Sums s;
    for (size_t w = 0; w < parts.size(); ++w) add(s, parts[w], times[w]);
    Values v = values_of(s);
    if (base) v.kl = sample_quantiles(ranked, times, static_cast<int64_t>(s.n));
    return v;
  };
  Values whole = draw(std::vector<uint32_t>(parts.size(), 1));
  std::vector<Values> samples(static_cast<size_t>(std::max(resamples, 1)));
  pool.parallel_for(std::ssize(samples), [&](int64_t i, int) {
    std::vector<uint32_t> times(parts.size(), 0);
    for (size_t w = 0; w < parts.size(); ++w) {
      double u = random_uniform(seed, static_cast<uint64_t>(i), w);
      ++times[static_cast<size_t>(u * static_cast<double>(parts.size()))];
    }
    samples[static_cast<size_t>(i)] = draw(times);
  });
  auto of = [&](auto&& get) {
    std::vector<double> list;
    for (const Values& v : samples) list.push_back(get(v));
    return estimate(get(whole), std::move(list));
  };

  Summary out;
  out.n_windows = std::ssize(windows);
  out.n_tokens = static_cast<int64_t>(all.n);
  out.perplexity = of([](const Values& v) { return v.perplexity; });
  out.perplexity_se =
      whole.perplexity * standard_error(windows, &WindowStats::nll, all.nll / all.n);
  if (!base) return out;
  out.base_perplexity = of([](const Values& v) { return v.base_perplexity; });
  out.base_perplexity_se =
      whole.base_perplexity * standard_error(windows, &WindowStats::base_nll, all.base_nll / all.n);
  out.kl_mean = of([](const Values& v) { return v.kl_mean; });
  out.kl_se = standard_error(windows, &WindowStats::kl, all.kl / all.n);
  Estimate* quantiles[] = {&out.kl_median, &out.kl_p90, &out.kl_p99, &out.kl_p999, &out.kl_max};
  for (size_t q = 0; q < kQuantiles; ++q)
    *quantiles[q] = of([q](const Values& v) { return v.kl[q]; });
  out.same_top = of([](const Values& v) { return v.same_top; });
  out.dp_mean = of([](const Values& v) { return v.dp_mean; });
  out.dp_rms = of([](const Values& v) { return v.dp_rms; });
  return out;
}

}  // namespace mt
