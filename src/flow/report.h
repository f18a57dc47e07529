#pragma once
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace mt {

struct Estimate {
  double value = 0;
  double low = 0;  // 95 % interval (bootstrap over windows)
  double high = 0;
};

// The original beside a cut, on the same text (nats a token, natural logarithm).
struct Comparison {
  std::string corpus;  // name, for people
  std::string corpus_sha256;
  int64_t n_ctx = 0;
  int64_t n_windows = 0;
  int64_t n_tokens = 0;  // scored
  Estimate base_perplexity, perplexity;
  double base_perplexity_se = 0, perplexity_se = 0;  // standard errors over tokens, as the field's
  double kl_se = 0;                                  // of kl_mean, over tokens
  Estimate kl_mean, kl_median, kl_p90, kl_p99, kl_p999, kl_max;
  Estimate same_top;         // share 0..1
  Estimate dp_mean, dp_rms;  // change of the true token's probability, 0..1
  std::string path;          // "exact" or "fast"

  // Fewer windows drawn again and again say little of the windows not seen: their intervals are
  // too narrow, and are not shown.
  static constexpr int64_t kLeastWindows = 5;
  bool intervals_hold() const { return n_windows >= kLeastWindows; }
};

struct PlaceReport {
  std::string place;
  int64_t layer = -1;  // -1: embedding, head
  std::string role;    // "attn_q", ..., "token_embd", "output"
  std::string from, to;
  int64_t n_weights = 0;
  int64_t bytes_from = 0, bytes_to = 0;
  double predicted_kl = 0;
  double measured_kl = std::numeric_limits<double>::quiet_NaN();  // NaN: not measured alone
};

struct FrontierPoint {
  int64_t bytes = 0;
  double bits_per_weight = 0;
  double predicted_kl = 0;
};

struct Report {
  std::string source, output;
  std::string source_sha256, output_sha256;
  std::string goal;
  int64_t source_bytes = 0, output_bytes = 0;
  int64_t n_weights = 0;                    // embedding and head included
  double source_bits = 0, output_bits = 0;  // true bits per weight
  double predicted_kl = 0;
  double optimality_gap = 0;            // of the plan; negative: nothing was optimised
  std::vector<Comparison> comparisons;  // first: the proof
  std::vector<PlaceReport> places;
  std::vector<FrontierPoint> frontier;
  std::vector<std::string> notes;
  double seconds = 0;
  int64_t peak_memory_bytes = 0;  // anonymous
  std::string cpu, version;
};

}  // namespace mt
