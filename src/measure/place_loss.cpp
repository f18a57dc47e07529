#include "measure/place_loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/checked.h"
#include "base/error.h"
#include "base/progress.h"
#include "run/layers.h"

namespace mt {

struct PlaceLoss::Impl {
  Impl(const Runtime& runtime, const Model& m, const Windows& w)
      : rt(runtime), model(m), windows(w) {
    Progress progress("reading the original", windows.size());
    for (const auto& tokens : windows) {
      const int64_t n = std::ssize(tokens), d = model.d_model;
      auto& kept = streams.emplace_back();
      ForwardOptions options;
      options.tap = [&](Point point, int64_t, Matrix value) {
        if (point != Point::stream) return;
        kept.emplace_back(n, d);
        std::copy_n(value.data, n * d, kept.back().data());
      };
      KvCache cache(model, 1, n);
      Chunk chunk{0, tokens};
      MatrixBuffer hidden = forward(rt, model, cache, {&chunk, 1}, options);
      auto& l = original.emplace_back(n, model.n_vocab);
      logits(rt, model, Path::exact, hidden, l);
      to_log_probabilities(l);
      progress.advance();
    }
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
  const Windows& windows;
  std::vector<std::vector<MatrixBuffer>> streams;  // [window][step], after the step
  std::vector<MatrixBuffer> original;              // [window], log-probabilities
};

PlaceLoss::PlaceLoss(const Runtime& rt, const Model& model, const Windows& windows)
    : impl_(std::make_unique<Impl>(rt, model, windows)) {}
PlaceLoss::~PlaceLoss() = default;

double PlaceLoss::measure(const std::string& place, const Weight& replacement) {
  const Impl& m = *impl_;
  Model cut = m.model;
  LinearMap* target = nullptr;
  for (LinearMap* map : linear_maps(cut))
    if (map->name == place) target = map;
  if (!target) throw_error("'{}' is no place of {}", place, cut.file->path);
  target->weight = replacement;
  // The first step that reads the place.
  size_t first = cut.steps.size();
  for (size_t s = cut.steps.size(); s-- > 0;)
    for (const Site& site : cut.steps[s].sites) {
      std::vector<const LinearMap*> maps;
      if (const auto* a = std::get_if<Attention>(&site.what)) maps = {&a->q, &a->k, &a->v, &a->o};
      if (const auto* f = std::get_if<Mlp>(&site.what)) maps = {&f->gate, &f->up, &f->down};
      for (const LinearMap* map : maps)
        if (map->name == place) first = s;
    }
  const bool from_embedding = target == &cut.embedding;

  double total = 0;
  int64_t n_tokens = 0;
  for (size_t w = 0; w < m.windows.size(); ++w) {
    const auto& tokens = m.windows[w];
    const int64_t n = std::ssize(tokens);
    KvCache cache(cut, 1, n);
    Chunk chunk{0, tokens};
    ForwardOptions options;
    if (!from_embedding) {
      options.first_step = static_cast<int64_t>(first);
      if (first > 0) options.stream = &m.streams[w][first - 1];
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
