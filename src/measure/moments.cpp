#include "measure/moments.h"

#include <algorithm>
#include <cmath>

#include "base/checked.h"
#include "base/error.h"
#include "base/progress.h"
#include "base/random.h"
#include "measure/self_text.h"
#include "run/backward.h"

namespace mt {
namespace {

// sums[i] += sum_t x[t,i]^2, in f64 within the window.
void add_squares(const Runtime& rt, ConstMatrix x, std::vector<float>& sums) {
  sums.resize(static_cast<size_t>(x.cols), 0.0f);
  constexpr int64_t kPiece = 256;
  rt.pool.parallel_for(ceil_div(x.cols, kPiece), [&](int64_t piece, int) {
    const int64_t begin = piece * kPiece, width = std::min(kPiece, x.cols - begin);
    double s[kPiece] = {};
    for (int64_t t = 0; t < x.rows; ++t) {
      const float* row = x.row(t) + begin;
      for (int64_t i = 0; i < width; ++i) s[i] += double(row[i]) * double(row[i]);
    }
    for (int64_t i = 0; i < width; ++i)
      sums[static_cast<size_t>(begin + i)] += static_cast<float>(s[i]);
  });
}

// Turns logits into p - onehot(label), label drawn from p; adds p(1-p) to head_out2.
void sampled_label_loss(const Runtime& rt, uint64_t seed, uint64_t stream, int64_t first,
                        Matrix logits, std::vector<float>& head_out2) {
  rt.pool.parallel_for(logits.rows, [&](int64_t t, int) {
    auto row = logits.row_span(t);
    double total;
    const int64_t label = draw(
        rt.kernels, row, random_uniform(seed, stream, static_cast<uint64_t>(first + t)), total);
    const float inverse = static_cast<float>(1.0 / total);
    for (float& p : row) p *= inverse;
    row[static_cast<size_t>(label)] -= 1.0f;
  });
  // |p - onehot| (1 - |p - onehot|) is p (1 - p) for every entry, the label's too.
  const int64_t kPiece = 1024;
  rt.pool.parallel_for(ceil_div(logits.cols, kPiece), [&](int64_t piece, int) {
    const int64_t end = std::min((piece + 1) * kPiece, logits.cols);
    for (int64_t t = 0; t < logits.rows; ++t)
      for (int64_t v = piece * kPiece; v < end; ++v) {
        const float p = std::fabs(logits.row(t)[v]);
        head_out2[static_cast<size_t>(v)] += p * (1.0f - p);
      }
  });
}

constexpr const char* kMetric = "moments";

// The running sums as they lie in the database between windows.
struct Sums {
  int64_t n_windows = 0, n_tokens = 0;
  std::map<std::string, MapMoments> maps;
  std::vector<float> embedding_out2, counts;

  void load(Measurements& db, const Model& model) {
    auto count_of = [&](const char* what) -> int64_t {  // 0: not there, or damaged
      const double n = db.value("model", kMetric, what).value_or(0);
      return n >= 1 && n <= 0x1p53 ? static_cast<int64_t>(n) : 0;
    };
    auto need = [&](const std::string& place, const std::string& metric, int64_t n) {
      auto v = db.vector(place, metric);
      if (!v || std::ssize(*v) != n ||
          !std::all_of(v->begin(), v->end(), [](float x) { return x >= 0 && std::isfinite(x); }))
        throw_error(
            "{}: '{}' of '{}' is missing or damaged; delete the file to measure anew, or name "
            "another with --db",
            db.path().string(), metric, place);
      return std::move(*v);
    };
    n_windows = count_of("windows");
    n_tokens = count_of("tokens");
    if (n_windows == 0 || n_tokens == 0) {
      n_windows = n_tokens = 0;
      return;
    }
    for (const LinearMap* map : linear_maps(model))
      if (map != &model.embedding || !model.head)
        maps[map->name] = {need(map->name, "in2_sum", map->weight.cols),
                           need(map->name, "out2_sum", map->weight.rows)};
    embedding_out2 = need("embed", "out2_sum", model.d_model);
    counts = need("embed", "token_count", model.n_vocab);
  }

  // Damaged weights show here.
  void check() const {
    for (const auto& [name, m] : maps)
      for (const auto* of : {&m.in2, &m.out2})
        if (!std::all_of(of->begin(), of->end(), [](float x) { return std::isfinite(x); }))
          throw_error(
              "'{}': its inputs or its outputs' gradients are not finite: weights of the model are "
              "damaged (NaN, infinite or far too large)",
              name);
  }

  void store(Measurements& db) const {
    db.begin();
    for (const auto& [name, m] : maps) {
      db.put(name, "in2_sum", m.in2);
      db.put(name, "out2_sum", m.out2);
    }
    db.put("embed", "out2_sum", embedding_out2);
    db.put("embed", "token_count", counts);
    db.put("model", kMetric, "tokens", double(n_tokens));
    db.put("model", kMetric, "windows", double(n_windows));
    db.commit();
  }
};

}  // namespace

Profile measure_moments(const Runtime& rt, const Model& model,
                        const std::vector<std::vector<int32_t>>& windows, uint64_t seed,
                        Measurements& db, Path path) {
  Sums sums;
  // As one transaction: another process may be storing its next window.
  db.begin();
  sums.load(db, model);
  db.commit();
  sums.counts.resize(static_cast<size_t>(model.n_vocab), 0.0f);
  MapMoments& head = sums.maps[model.head_map().name];
  head.out2.resize(static_cast<size_t>(model.n_vocab), 0.0f);

  BackwardTaps taps;
  taps.map = [&](const LinearMap& map, ConstMatrix x, ConstMatrix dy) {
    MapMoments& m = sums.maps[map.name];
    add_squares(rt, x, m.in2);
    add_squares(rt, dy, m.out2);
  };
  taps.embed = [&](std::span<const int32_t> tokens, ConstMatrix d) {
    add_squares(rt, d, sums.embedding_out2);
    for (int32_t t : tokens) sums.counts[static_cast<size_t>(t)] += 1;
  };
  Progress progress("profiling", windows.size());
  progress.advance(static_cast<uint64_t>(sums.n_windows));
  for (size_t w = static_cast<size_t>(sums.n_windows); w < windows.size(); ++w) {
    backward(rt, model, windows[w],
             [&](int64_t first, ConstMatrix hidden, Matrix logits) {
               add_squares(rt, hidden, head.in2);
               sampled_label_loss(rt, seed, w, first, logits, head.out2);
             },
             taps, {.path = path});
    sums.check();
    sums.n_windows++;
    sums.n_tokens += std::ssize(windows[w]);
    sums.store(db);
    progress.advance();
  }

  Profile profile;
  profile.n_tokens = sums.n_tokens;
  const float scale = 1.0f / static_cast<float>(std::max<int64_t>(1, sums.n_tokens));
  auto mean = [&](std::vector<float> v) {
    for (float& x : v) x *= scale;
    return v;
  };
  for (const auto& [name, m] : sums.maps) profile.maps[name] = {mean(m.in2), mean(m.out2)};
  profile.embedding_out2 = mean(sums.embedding_out2);
  // A tenth of the weight evenly to all tokens: what calibration never saw may still come.
  profile.token_share = mean(sums.counts);
  for (float& s : profile.token_share) s = 0.9f * s + 0.1f / static_cast<float>(model.n_vocab);
  return profile;
}

}  // namespace mt
