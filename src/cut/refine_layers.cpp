#include "cut/refine_layers.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/progress.h"
#include "cut/refine_parameters.h"
#include "cut/refine_state.h"
#include "run/layers.h"

namespace mt {
namespace {

using Windows = std::vector<std::vector<int32_t>>;

// Steps are shorter where the layer's error is a smaller share of its update's energy than this.
constexpr double kWholeStepsFrom = 1e-3;

// As many windows, evenly apart, as leave both models' streams within the bytes allowed.
Windows windows_within(const Windows& windows, const Model& model, int64_t bytes) {
  int64_t longest = 1;
  for (const auto& w : windows) longest = std::max<int64_t>(longest, std::ssize(w));
  const int64_t each = 2 * longest * model.d_model * int64_t{sizeof(float)};
  const int64_t n = std::ssize(windows), fit = std::clamp<int64_t>(bytes / each, 1, n);
  Windows some;
  for (int64_t i = 0; i < fit; ++i) some.push_back(windows[static_cast<size_t>(i * n / fit)]);
  return some;
}

double distance(const Runtime& rt, ConstMatrix streams, ConstMatrix targets,
                std::span<const float> weights, const std::function<void(int64_t, float)>& row) {
  std::vector<double> sums(static_cast<size_t>(streams.rows));
  for_rows(rt, streams.rows, [&](int64_t t) {
    const float *y = streams.row(t), *e = targets.row(t);
    double sum = 0, energy = 0;
    for (int64_t c = 0; c < streams.cols; ++c) {
      const double w = weights.empty() ? 1.0 : double(weights[static_cast<size_t>(c)]);
      const double difference = double(y[c]) - double(e[c]);
      sum += w * difference * difference;
      energy += double(e[c]) * double(e[c]);
    }
    const double scale = energy > 0 ? double(streams.cols) / energy : 0.0;
    sums[static_cast<size_t>(t)] = sum * scale;
    if (row) row(t, static_cast<float>(scale));
  });
  double sum = 0;
  for (double s : sums) sum += s;
  return sum;
}

// The streams of both models' windows, before or after the layer at hand.
class Streams {
 public:
  Streams(const Runtime& rt, const Model& original, const Model& cut, const Windows& windows,
          Path path)
      : rt_(rt), windows_(windows), path_(path) {
    for (const auto& window : windows) {
      embed(rt, original, window, targets_.emplace_back(std::ssize(window), original.d_model));
      embed(rt, cut, window, streams_.emplace_back(std::ssize(window), cut.d_model));
    }
  }
  const MatrixBuffer& target(int64_t window) const { return targets_[static_cast<size_t>(window)]; }
  const MatrixBuffer& stream(int64_t window) const { return streams_[static_cast<size_t>(window)]; }

  // The targets through the layer; what it adds, measured as distances are: a token's mean.
  double advance_targets(const Model& layer, std::span<const float> weights) {
    double energy = 0;
    int64_t n = 0;
    for (size_t i = 0; i < windows_.size(); ++i) {
      MatrixBuffer next = run(layer, windows_[i], targets_[i]);
      energy += stream_distance(rt_, targets_[i], next, weights);
      n += next.rows();
      targets_[i] = std::move(next);
    }
    return energy / double(std::max<int64_t>(1, n));
  }
  void advance_streams(const Model& layer) {
    for (size_t i = 0; i < windows_.size(); ++i) streams_[i] = run(layer, windows_[i], streams_[i]);
  }

 private:
  MatrixBuffer run(const Model& layer, std::span<const int32_t> tokens, const MatrixBuffer& from) {
    KvCache cache(layer, 1, std::ssize(tokens));
    const Chunk chunk{0, tokens};
    ForwardOptions options;
    options.path = path_;
    options.stream = &from;
    options.end_step = std::ssize(layer.steps);
    return forward(rt_, layer, cache, {&chunk, 1}, options);
  }

  const Runtime& rt_;
  const Windows& windows_;
  Path path_;
  std::vector<MatrixBuffer> targets_, streams_;
};

// The names of what a layer holds.
IsFree inside(const Model& layer) {
  std::set<std::string> outside{layer.embedding.name, kFinalNorm};
  if (layer.head) outside.insert(layer.head->name);
  return [outside](const std::string& tensor) { return !outside.contains(tensor); };
}

// The final norm, and the head where it is a matrix apart.
IsFree at_the_end(const Model& model) {
  std::set<std::string> free{kFinalNorm};
  if (model.head) free.insert(model.head->name);
  return [free](const std::string& tensor) { return free.contains(tensor); };
}

}  // namespace

Model layer_of(const Model& model, int64_t layer) {
  Model alone;
  alone.file = model.file;
  alone.architecture = model.architecture;
  alone.n_layers = 1;
  alone.d_model = model.d_model;
  alone.n_vocab = model.n_vocab;
  alone.context_length = model.context_length;
  alone.norm_epsilon = model.norm_epsilon;
  alone.embedding_scale = model.embedding_scale;
  alone.logit_softcap = model.logit_softcap;
  alone.embedding = model.embedding;
  alone.head = model.head;
  alone.final_norm = model.final_norm;
  for (const Step& step : model.steps)
    if (step.layer == layer) alone.steps.push_back({0, step.sites});
  return alone;
}

void put_layer(Model& model, int64_t layer, const Model& alone) {
  size_t next = 0;
  for (Step& step : model.steps)
    if (step.layer == layer) step.sites = alone.steps.at(next++).sites;
}

double stream_distance(const Runtime& rt, ConstMatrix streams, ConstMatrix targets,
                       std::span<const float> weights) {
  return distance(rt, streams, targets, weights, {});
}

double stream_gradient(const Runtime& rt, Matrix streams, ConstMatrix targets,
                       std::span<const float> weights, double factor) {
  return distance(rt, streams, targets, weights, [&](int64_t t, float scale) {
    float* y = streams.row(t);
    const float* e = targets.row(t);
    const float f = 2 * scale * static_cast<float>(factor);
    for (int64_t c = 0; c < streams.cols; ++c)
      y[c] = f * (weights.empty() ? 1.0f : weights[static_cast<size_t>(c)]) * (y[c] - e[c]);
  });
}

std::vector<std::vector<float>> stream_weights(const Model& model, const Profile& profile) {
  std::vector<std::vector<float>> all(static_cast<size_t>(model.n_layers));
  for (const Step& step : model.steps)
    for (const Site& site : step.sites) {
      const auto* attention = std::get_if<Attention>(&site.what);
      const LinearMap& last = attention ? attention->o : std::get<Mlp>(site.what).down;
      const auto known = profile.maps.find(last.name);
      if (known == profile.maps.end()) return {};
      std::vector<float>& weights = all[static_cast<size_t>(step.layer)];
      weights = known->second.out2;
      // A norm behind the map multiplies each channel by its gain, and its gradient too.
      for (size_t i = 0; i < site.post_norm.size(); ++i)
        weights[i] /= std::max(site.post_norm[i] * site.post_norm[i], 1e-12f);
      double mean = 0;
      for (float w : weights) mean += double(w) / double(weights.size());
      // No channel counts a hundred times as much as the mean, nor for nothing.
      for (float& w : weights)
        w = mean > 0 ? std::clamp(w / static_cast<float>(mean), 0.01f, 100.0f) : 1.0f;
    }
  return all;
}

Refined refine_layers(const Runtime& rt, const Model& original, const Model& cut,
                      const Windows& windows, const RefineSettings& settings) {
  Refined result{.model = cut, .losses = {}};
  result.by_layer = true;
  const Windows some = windows_within(windows, original, settings.stream_bytes);
  result.n_windows = std::ssize(some);
  const int64_t together = windows_of_a_step(some, settings);
  const bool keeps = !settings.checkpoint.empty();
  const std::string key =
      keeps ? refine_key(original, cut, windows, settings, true) : std::string();
  Progress progress("refining layer by layer",
                    static_cast<uint64_t>(settings.steps * (original.n_layers + 1)));
  int64_t done = 0;

  // N steps on what is free of `part`; its losses. `gradient` adds that of one window times share.
  const auto steps_on = [&](Model& part, const Model& from, const IsFree& is_free,
                            double whole_steps_from, const auto& gradient) {
    RefineParameters work(rt, from, part, settings, is_free);
    result.n_scales += work.n_scales();
    result.n_norms += work.n_norms();
    result.n_codes += work.n_codes();
    const BackwardTaps taps = work.taps();
    std::vector<double>& losses = work.state().losses;
    for (int64_t step = 0; step < settings.steps; ++step) {
      work.clear_gradient();
      double loss = 0;
      for (int64_t i = 0; i < together; ++i) {
        const int64_t w = window_of(step * together + i, std::ssize(some), settings.seed);
        loss += gradient(w, 1 / double(together), taps) / double(together);
      }
      losses.push_back(loss);
      work.descend(step, std::sqrt(std::clamp(losses.front() / whole_steps_from, 0.0, 1.0)));
      progress.advance();
      if (settings.after_step) settings.after_step(++done, loss);
    }
    return losses;
  };
  // The part as an earlier run left it, or refined now and kept in a file that is mapped, so that
  // what is finished takes no memory.
  const auto finish = [&](int64_t number, Model& part, const Model& from, const IsFree& is_free,
                          const auto& refined) {
    const auto free = RefineParameters::names(from, part, settings, is_free);
    if (free.empty()) return;
    std::vector<double> losses(static_cast<size_t>(settings.steps));
    const auto file = part_of_state(settings.checkpoint, number);
    if (keeps && load_refined_part(file, key, number, part, free, losses)) {
      progress.advance(static_cast<uint64_t>(settings.steps));
      done += settings.steps;
    } else {
      losses = refined();
      if (keeps) {
        save_refined_part(file, key, number, part, free, losses);
        std::vector<double> same(losses.size());
        load_refined_part(file, key, number, part, free, same);
      }
    }
    result.losses.insert(result.losses.end(), losses.begin(), losses.end());
  };

  Streams streams(rt, original, cut, some, settings.path);
  for (int64_t l = 0; l < original.n_layers; ++l) {
    const Model from = layer_of(original, l);
    Model layer = layer_of(result.model, l);
    const std::span<const float> weights =
        settings.channel_weights.empty()
            ? std::span<const float>()
            : std::span<const float>(settings.channel_weights[static_cast<size_t>(l)]);
    const double energy = std::max(streams.advance_targets(from, weights), 1e-30);
    finish(l, layer, from, inside(layer), [&] {
      return steps_on(layer, from, inside(layer), kWholeStepsFrom,
                      [&](int64_t w, double share, const BackwardTaps& taps) {
                        const MatrixBuffer& in = streams.stream(w);
                        const double each = 1 / (energy * double(in.rows()));
                        double loss = 0;
                        backward_of_steps(rt, layer,
                                          [&](Matrix out) {
                                            loss = stream_gradient(rt, out, streams.target(w),
                                                                   weights, share * each);
                                          },
                                          taps, {.path = settings.path, .stream = &in});
                        return loss * each;
                      });
    });
    put_layer(result.model, l, layer);
    streams.advance_streams(layer);
  }

  // What is behind the layers, against the KL itself.
  result.first_kl = result.losses.size();
  Model end = layer_of(result.model, -1), from = layer_of(original, -1);
  end.n_layers = from.n_layers = 0;
  KlGradient gradient(rt, original, settings.path);
  finish(original.n_layers, end, from, at_the_end(end), [&] {
    return steps_on(end, from, at_the_end(end), settings.whole_steps_from,
                    [&](int64_t w, double share, const BackwardTaps& taps) {
                      const MatrixBuffer& target = streams.target(w);
                      MatrixBuffer hidden(target.rows(), target.cols());
                      rms_norm(rt, target, original.final_norm, original.norm_epsilon, hidden);
                      return gradient.add(end, some[static_cast<size_t>(w)], hidden, share, taps,
                                          &streams.stream(w));
                    });
  });
  result.model.head = end.head;
  result.model.final_norm = end.final_norm;
  return result;
}

}  // namespace mt
