#include "measure/eval.h"

#include <algorithm>
#include <cmath>

#include "base/checked.h"
#include "base/error.h"
#include "base/progress.h"

namespace mt {
namespace {

// log-softmax of one row of logits, in parts.
struct RowSoftmax {
  float top_logit = 0;
  int64_t top = 0;   // first index of the largest
  double total = 0;  // sum of exp(logit - top_logit)

  double log_p(float logit) const { return double(logit) - top_logit - std::log(total); }
};

// exps: room for n values; receives exp(logit - top_logit).
RowSoftmax softmax(const Kernels& k, const float* logits, int64_t n, float* exps) {
  RowSoftmax s;
  s.top_logit = k.max(logits, n);
  s.top = std::find(logits, logits + n, s.top_logit) - logits;
  std::copy_n(logits, n, exps);
  s.total = k.exp_sum(exps, n, s.top_logit);
  return s;
}

// sum_i p_i (log p_i - log q_i), p given by its exps. The shifts are taken off each logit first, so
// that equal rows give exactly 0. Eight chains, added pairwise: the same order everywhere.
double kl_divergence(const float* p_logits, const float* p_exps, const RowSoftmax& p,
                     const float* q_logits, const RowSoftmax& q, int64_t n) {
  double chain[8] = {};
  auto term = [&](int64_t i) {
    double difference = (double(p_logits[i]) - p.top_logit) - (double(q_logits[i]) - q.top_logit);
    return double(p_exps[i]) * difference;
  };
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int64_t c = 0; c < 8; ++c) chain[c] += term(i + c);
  for (int64_t c = 0; i < n; ++i, ++c) chain[c] += term(i);
  double sum = ((chain[0] + chain[4]) + (chain[2] + chain[6])) +
               ((chain[1] + chain[5]) + (chain[3] + chain[7]));
  return sum / p.total - (std::log(p.total) - std::log(q.total));
}

}  // namespace

int64_t logits_slice_rows(int64_t n_vocab) {
  constexpr int64_t floats = int64_t{32} << 20;
  return std::clamp<int64_t>(floats / std::max<int64_t>(n_vocab, 1), 16, 256);
}

struct WindowEvaluator::Impl {
  const Runtime& rt;
  const Model* base;
  const Model& model;
  Path path, base_path;
  std::optional<KvCache> base_cache;
  KvCache cache;
  MatrixBuffer base_logits, logits_buffer;
  MatrixBuffer exps;  // a row a thread

  MatrixBuffer hidden(const Model& m, Path p, KvCache& c, std::span<const int32_t> tokens) const {
    c.truncate(0, 0);
    Chunk chunk{.sequence = 0, .tokens = tokens};
    return forward(rt, m, c, {&chunk, 1}, {.path = p, .tap = {}});
  }
};

WindowEvaluator::WindowEvaluator(const Runtime& rt, const Model* base, const Model& model,
                                 int64_t n_ctx, Path path, const std::optional<KvTypes>& kv_types,
                                 const std::optional<Path>& base_path) {
  if (base && base->n_vocab != model.n_vocab)
    throw_error("{}: cannot be compared with {}: expected its vocabulary of {} tokens, found {}",
                model.file->path, base->file->path, base->n_vocab, model.n_vocab);
  int64_t rows =
      std::min(logits_slice_rows(model.n_vocab), std::max<int64_t>(scored_range(n_ctx).count, 1));
  impl_.reset(new Impl{.rt = rt,
                       .base = base,
                       .model = model,
                       .path = path,
                       .base_path = base_path.value_or(path),
                       .base_cache = {},
                       .cache = KvCache(model, 1, n_ctx, kv_types.value_or(default_kv_types(path))),
                       .base_logits = {},
                       .logits_buffer = MatrixBuffer(rows, model.n_vocab),
                       .exps = MatrixBuffer(rt.pool.size(), model.n_vocab)});
  if (base) {
    impl_->base_cache.emplace(*base, 1, n_ctx, base_kv_types(base_path));
    impl_->base_logits = MatrixBuffer(rows, model.n_vocab);
  }
}
WindowEvaluator::~WindowEvaluator() = default;

WindowStats WindowEvaluator::measure(std::span<const int32_t> tokens) {
  Impl& s = *impl_;
  const Kernels& k = s.rt.kernels;
  const int64_t n_vocab = s.model.n_vocab;
  const ScoredRange range = scored_range(std::ssize(tokens));
  WindowStats out;
  auto n = static_cast<size_t>(range.count);
  out.nll.resize(n);
  MatrixBuffer base_hidden;
  if (s.base) {
    for (auto* v : {&out.base_nll, &out.kl, &out.dp, &out.same_top}) v->resize(n);
    base_hidden = s.hidden(*s.base, s.base_path, *s.base_cache, tokens);
  }
  MatrixBuffer hidden = s.hidden(s.model, s.path, s.cache, tokens);

  // Slices of equal size: the head is decoded once for each.
  const int64_t n_slices = ceil_div(range.count, s.logits_buffer.rows());
  for (int64_t i = 0; i < n_slices; ++i) {
    const int64_t begin = range.count * i / n_slices, end = range.count * (i + 1) / n_slices;
    const int64_t from = range.first + begin, to = range.first + end;
    Matrix logits_rows = s.logits_buffer.view().slice_rows(0, end - begin);
    logits(s.rt, s.model, s.path, hidden.view().slice_rows(from, to), logits_rows);
    Matrix base_rows;
    if (s.base) {
      base_rows = s.base_logits.view().slice_rows(0, end - begin);
      logits(s.rt, *s.base, s.base_path, base_hidden.view().slice_rows(from, to), base_rows);
    }
    s.rt.pool.parallel_for(end - begin, [&](int64_t r, int thread) {
      auto at = static_cast<size_t>(begin + r);
      int32_t truth = tokens[static_cast<size_t>(from + r + 1)];
      float* exps = s.exps.row(thread);
      const float* row = logits_rows.row(r);
      RowSoftmax q = softmax(k, row, n_vocab, exps);
      double log_q = q.log_p(row[truth]);
      out.nll[at] = static_cast<float>(-log_q);
      if (!s.base) return;
      const float* base_row = base_rows.row(r);
      RowSoftmax p = softmax(k, base_row, n_vocab, exps);
      double log_p = p.log_p(base_row[truth]);
      out.base_nll[at] = static_cast<float>(-log_p);
      out.kl[at] = static_cast<float>(kl_divergence(base_row, exps, p, row, q, n_vocab));
      out.dp[at] = static_cast<float>(std::exp(log_q) - std::exp(log_p));
      out.same_top[at] = p.top == q.top ? 1.0f : 0.0f;
    });
  }
  auto finite = [](const std::vector<float>& v) {
    return std::all_of(v.begin(), v.end(), [](float x) { return std::isfinite(x); });
  };
  if (!finite(out.nll)) throw_error("{}: the model's logits are not finite", s.model.file->path);
  if (s.base && (!finite(out.base_nll) || !finite(out.kl)))
    throw_error("{}: the model's logits are not finite", s.base->file->path);
  return out;
}

namespace {

Comparison evaluate(const Runtime& rt, const Model* base, const Model& model,
                    const Windows& windows, const EvalOptions& options) {
  int64_t n_ctx = 0;
  for (const auto& w : windows) n_ctx = std::max<int64_t>(n_ctx, std::ssize(w));
  if (scored_range(n_ctx).count == 0)
    throw_error("a window of {} tokens has none to score: expected at least 3", n_ctx);
  WindowEvaluator evaluator(rt, base, model, n_ctx, options.path, options.kv_types,
                            options.base_path);
  std::vector<WindowStats> stats;
  {
    Progress progress(options.label, windows.size());
    for (int64_t w = 0; w < std::ssize(windows); ++w) {
      std::optional<WindowStats> known;
      if (options.stored) known = options.stored(w);
      if (!known || known->has_base() != (base != nullptr)) {
        known = evaluator.measure(windows[static_cast<size_t>(w)]);
        if (options.store) options.store(w, *known);
      }
      stats.push_back(std::move(*known));
      progress.advance();
    }
  }
  Summary s = summarise(rt.pool, stats, options.seed, options.resamples);
  Comparison out;
  out.n_ctx = n_ctx;
  out.n_windows = s.n_windows;
  out.n_tokens = s.n_tokens;
  out.base_perplexity = s.base_perplexity;
  out.perplexity = s.perplexity;
  out.base_perplexity_se = s.base_perplexity_se;
  out.perplexity_se = s.perplexity_se;
  out.kl_mean = s.kl_mean;
  out.kl_se = s.kl_se;
  out.kl_median = s.kl_median;
  out.kl_p90 = s.kl_p90;
  out.kl_p99 = s.kl_p99;
  out.kl_p999 = s.kl_p999;
  out.kl_max = s.kl_max;
  out.same_top = s.same_top;
  out.dp_mean = s.dp_mean;
  out.dp_rms = s.dp_rms;
  out.path = options.path == Path::exact ? "exact" : "fast";
  return out;
}

}  // namespace

Comparison compare(const Runtime& rt, const Model& base, const Model& cut, const Windows& windows,
                   const EvalOptions& options) {
  return evaluate(rt, &base, cut, windows, options);
}

Comparison perplexity(const Runtime& rt, const Model& model, const Windows& windows,
                      const EvalOptions& options) {
  return evaluate(rt, nullptr, model, windows, options);
}

void window_logits(const Runtime& rt, const Model& model, std::span<const int32_t> tokens,
                   Path path, const std::function<void(ConstMatrix rows)>& write,
                   const std::optional<KvTypes>& kv_types) {
  KvCache cache(model, 1, std::ssize(tokens), kv_types.value_or(default_kv_types(path)));
  Chunk chunk{.sequence = 0, .tokens = tokens};
  MatrixBuffer hidden = forward(rt, model, cache, {&chunk, 1}, {.path = path, .tap = {}});
  int64_t slice = std::min(logits_slice_rows(model.n_vocab), hidden.rows());
  MatrixBuffer rows(slice, model.n_vocab);
  for (int64_t begin = 0; begin < hidden.rows(); begin += slice) {
    int64_t end = std::min(begin + slice, hidden.rows());
    Matrix out = rows.view().slice_rows(0, end - begin);
    logits(rt, model, path, hidden.view().slice_rows(begin, end), out);
    write(out);
  }
}

}  // namespace mt
