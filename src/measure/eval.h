#pragma once
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "flow/report.h"
#include "measure/eval_stats.h"
#include "run/forward.h"

namespace mt {

// Perplexity as the field defines it: each window starts anew (no overlap), and its second half is
// scored: tokens n/2+1 .. n-1 of a window of n, each predicted from all before it.
struct ScoredRange {
  int64_t first = 0;  // position whose logits predict the first scored token
  int64_t count = 0;
};
inline ScoredRange scored_range(int64_t n_ctx) {
  int64_t first = n_ctx / 2;
  return {first, n_ctx > first + 1 ? n_ctx - 1 - first : 0};
}

struct EvalOptions {
  Path path = Path::exact;
  // The base's, with the cache that it has by default. Nothing: the same path with a cache in F32,
  // beside which a cache's own cost is seen.
  std::optional<Path> base_path = {};
  // Of the measured model's cache. Nothing: what the path has by default.
  std::optional<KvTypes> kv_types = {};
  uint64_t seed = 1;     // of the bootstrap
  int resamples = 1000;  // of the bootstrap
  std::string label = "measuring";
  // Both may be empty. `stored` gives what an earlier run kept of a window, `store` keeps it: a
  // run that was killed goes on where it was.
  std::function<std::optional<WindowStats>(int64_t window)> stored;
  std::function<void(int64_t window, const WindowStats& stats)> store;
};

// Measures window after window, the two models side by side. Holds the caches and buffers:
// O(n_ctx x d_model) and two slices of logits, at most about 128 MB each; never all logits.
class WindowEvaluator {
 public:
  // base: nullptr to measure one model alone. Throws Error where the vocabularies differ. The
  // models must outlive it.
  WindowEvaluator(const Runtime& rt, const Model* base, const Model& model, int64_t n_ctx,
                  Path path, const std::optional<KvTypes>& kv_types = {},
                  const std::optional<Path>& base_path = {});
  ~WindowEvaluator();
  // tokens: n_ctx or fewer, at least 3. Throws Error where a model gives logits that are no
  // numbers. The same bytes for any number of threads.
  WindowStats measure(std::span<const int32_t> tokens);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

using Windows = std::vector<std::vector<int32_t>>;

// A cut beside the original it was made from, on the same windows. corpus and corpus_sha256 of the
// result are the caller's to fill. Throws Error.
Comparison compare(const Runtime& rt, const Model& base, const Model& cut, const Windows& windows,
                   const EvalOptions& options = {});
// One model alone: only its perplexity is filled. Throws Error.
Comparison perplexity(const Runtime& rt, const Model& model, const Windows& windows,
                      const EvalOptions& options = {});

// All logits of a window, slice by slice: write(rows) with rows [<= slice, n_vocab] in order.
void window_logits(const Runtime& rt, const Model& model, std::span<const int32_t> tokens,
                   Path path, const std::function<void(ConstMatrix rows)>& write,
                   const std::optional<KvTypes>& kv_types = {});

// Of the base's cache (EvalOptions::base_path).
inline KvTypes base_kv_types(const std::optional<Path>& base_path) {
  return base_path ? default_kv_types(*base_path) : KvTypes{};
}

// Rows of logits [n_vocab] that go in a slice of about 128 MB, at most 256.
int64_t logits_slice_rows(int64_t n_vocab);

}  // namespace mt
