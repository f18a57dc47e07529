#include "measure/place_loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "base/checked.h"
#include "base/error.h"
#include "base/progress.h"
#include "run/layers.h"

namespace mt {

namespace {

bool same(const LinearMap& a, const LinearMap& b) {
  return a.weight.dtype == b.weight.dtype &&
         a.weight.data.bytes.data() == b.weight.data.bytes.data() && a.bias == b.bias;
}

bool same(const Site& a, const Site& b) {
  if (a.norm != b.norm || a.post_norm != b.post_norm) return false;
  if (const auto* x = std::get_if<Attention>(&a.what)) {
    const auto& y = std::get<Attention>(b.what);
    return same(x->q, y.q) && same(x->k, y.k) && same(x->v, y.v) && same(x->o, y.o) &&
           x->q_norm == y.q_norm && x->k_norm == y.k_norm;
  }
  const auto &x = std::get<Mlp>(a.what), &y = std::get<Mlp>(b.what);
  return same(x.gate, y.gate) && same(x.up, y.up) && same(x.down, y.down);
}

// Steps that both models, cuts of one, have alike from the first on; none where the embeddings
// differ.
std::optional<size_t> steps_alike(const Model& a, const Model& b) {
  if (!same(a.embedding, b.embedding)) return std::nullopt;
  size_t n = 0;
  while (n < a.steps.size() &&
         std::equal(a.steps[n].sites.begin(), a.steps[n].sites.end(), b.steps[n].sites.begin(),
                    [](const Site& x, const Site& y) { return same(x, y); }))
    ++n;
  return n;
}

}  // namespace

struct PlaceLoss::Impl {
  Impl(const Runtime& runtime, const Model& m, const Windows& w)
      : rt(runtime), model(m), windows(w) {
    std::optional<Progress> progress;
    if (windows.size() > 1) progress.emplace("reading the original", windows.size());
    streams.resize(windows.size());
    for (size_t i = 0; i < windows.size(); ++i) {
      MatrixBuffer hidden = run_and_keep(model, i);
      auto& l = original.emplace_back(std::ssize(windows[i]), model.n_vocab);
      logits(rt, model, Path::exact, hidden, l);
      to_log_probabilities(l);
      if (progress) progress->advance();
    }
  }

  // A whole pass, whose streams replace those kept.
  MatrixBuffer run_and_keep(const Model& m, size_t window) {
    const auto& tokens = windows[window];
    const int64_t n = std::ssize(tokens), d = m.d_model;
    auto& kept = streams[window];
    kept.clear();
    ForwardOptions options;
    options.tap = [&](Point point, int64_t, Matrix value) {
      if (point != Point::stream) return;
      kept.emplace_back(n, d);
      std::copy_n(value.data, n * d, kept.back().data());
    };
    KvCache cache(m, 1, n);
    Chunk chunk{0, tokens};
    return forward(rt, m, cache, {&chunk, 1}, options);
  }

  void to_log_probabilities(Matrix l) const {
    rt.pool.parallel_for(l.rows, [&](int64_t t, int) {
      auto row = l.row_span(t);
      std::vector<float> e(row.begin(), row.end());
      const float top = rt.kernels.max(e.data(), l.cols);
      const double sum = rt.kernels.exp_sum(e.data(), l.cols, top);
      const float shift = static_cast<float>(double(top) + std::log(sum));
      for (float& x : row) x -= shift;
    });
  }

  const Runtime& rt;
  const Model& model;
  Windows windows;
  Model standing = model;                          // whose streams are kept
  std::vector<std::vector<MatrixBuffer>> streams;  // [window][step], after the step
  std::vector<MatrixBuffer> original;              // [window], log-probabilities
};

PlaceLoss::PlaceLoss(const Runtime& rt, const Model& model, const Windows& windows)
    : impl_(std::make_unique<Impl>(rt, model, windows)) {}
PlaceLoss::~PlaceLoss() = default;

double PlaceLoss::measure(const std::string& place, const Weight& replacement) {
  Model cut = impl_->model;
  LinearMap* target = nullptr;
  for (LinearMap* map : linear_maps(cut))
    if (map->name == place) target = map;
  if (!target) throw_error("'{}' is no place of {}", place, cut.file->path);
  target->weight = replacement;
  return measure(cut);
}

void PlaceLoss::stand_on(const Model& cut) {
  for (size_t w = 0; w < impl_->windows.size(); ++w) impl_->run_and_keep(cut, w);
  impl_->standing = cut;
}

double PlaceLoss::measure(const Model& cut) {
  const Impl& m = *impl_;
  const auto alike = steps_alike(m.standing, cut);
  double total = 0;
  int64_t n_tokens = 0;
  for (size_t w = 0; w < m.windows.size(); ++w) {
    const auto& tokens = m.windows[w];
    const int64_t n = std::ssize(tokens);
    KvCache cache(cut, 1, n);
    Chunk chunk{0, tokens};
    ForwardOptions options;
    if (alike) {
      options.first_step = static_cast<int64_t>(*alike);
      if (*alike > 0) options.stream = &m.streams[w][*alike - 1];
    }
    MatrixBuffer hidden = forward(m.rt, cut, cache, {&chunk, 1}, options);
    std::vector<double> kl(static_cast<size_t>(n));
    const int64_t slice = logits_slice_rows(cut.n_vocab);
    MatrixBuffer buffer(std::min(slice, n), cut.n_vocab);
    for (int64_t t = 0; t < n; t += slice) {
      const int64_t rows = std::min(slice, n - t);
      Matrix l = buffer.view().slice_rows(0, rows);
      logits(m.rt, cut, Path::exact, hidden.view().slice_rows(t, t + rows), l);
      m.to_log_probabilities(l);
      m.rt.pool.parallel_for(rows, [&](int64_t r, int) {
        // sum p (ln p - ln q), p from the original
        const float* lp = m.original[w].row(t + r);
        std::vector<float> p(lp, lp + l.cols);
        m.rt.kernels.exp_sum(p.data(), l.cols, 0);
        double sum = 0;
        for (int64_t v = 0; v < l.cols; ++v)
          sum += double(p[static_cast<size_t>(v)]) * (double(lp[v]) - double(l.row(r)[v]));
        kl[static_cast<size_t>(t + r)] = sum;
      });
    }
    total += std::accumulate(kl.begin(), kl.end(), 0.0);
    n_tokens += n;
  }
  return total / double(n_tokens);
}

}  // namespace mt
