#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "base/threads.h"
#include "flow/report.h"

namespace mt {

// What one window of text gave, a value a scored token. f32, so that a window read back from a
// store gives the same bytes as one just measured.
struct WindowStats {
  std::vector<float> nll;  // -ln p(the true token)
  // With a base model; otherwise empty.
  std::vector<float> base_nll;
  std::vector<float> kl;        // KL(base || model), nats
  std::vector<float> dp;        // p(true token): model's less base's
  std::vector<float> same_top;  // 1 where both have the same most likely token

  bool has_base() const { return !base_nll.empty(); }
  // As one vector, for a store. unpack throws Error where the vector is no packed window.
  std::vector<float> pack() const;
  static WindowStats unpack(std::span<const float> packed);
};

// values ascending, not empty; share in 0..1; linear between neighbours (position share * (n-1)).
double quantile(std::span<const float> ascending, double share);

struct Summary {
  int64_t n_windows = 0, n_tokens = 0;
  Estimate perplexity;
  double perplexity_se = 0;  // of the tokens' mean nll, as the field gives it, times perplexity
  // With a base model; otherwise zero.
  Estimate base_perplexity;
  double base_perplexity_se = 0;
  Estimate kl_mean, kl_median, kl_p90, kl_p99, kl_p999, kl_max;
  double kl_se = 0;
  Estimate same_top, dp_mean, dp_rms;
};

// Estimates over all tokens; their 95 % intervals by a bootstrap that draws whole windows (tokens
// of a window are not independent), `resamples` times, seeded. All windows with base or all
// without. Throws Error where there is no window. The same bytes for any number of threads.
Summary summarise(ThreadPool& pool, std::span<const WindowStats> windows, uint64_t seed = 1,
                  int resamples = 1000);

}  // namespace mt
