#include "cut/refine.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <optional>
#include <set>

#include "base/checked.h"
#include "base/error.h"
#include "base/progress.h"
#include "base/random.h"
#include "cut/field_gradient.h"
#include "cut/learned_rounding.h"
#include "cut/learned_scales.h"
#include "cut/refine_state.h"
#include "dtype/scale_fields.h"
#include "run/backward.h"

namespace mt {
namespace {

// Hidden states of the original are kept for windows that come again, up to so many bytes.
constexpr int64_t kHiddenBytes = 256 << 20;

// A tensor's parameters: a range of the flat arrays.
struct Range {
  size_t begin, count;
};
struct FreeWeight {
  LinearMap* map;
  Range range;
  std::shared_ptr<AlignedBuffer<std::byte>> bytes;
  std::optional<size_t> latents;  // where its latent codes begin, if they are learned
  std::optional<Range> subs;      // its scales of sub-blocks, if they are learned
};
struct FreeNorm {
  std::vector<float>* gain;
  Range range;
};

class Refinement {
 public:
  Refinement(const Runtime& rt, const Model& original, Model& cut, const RefineSettings& settings)
      : rt_(rt), original_(original), cut_(cut), settings_(settings) {
    collect();
  }

  RefineState& state() { return state_; }
  int64_t n_scales() const {
    return static_cast<int64_t>(n_scales_) + std::ssize(state_.sub_latent);
  }
  int64_t n_codes() const { return std::ssize(state_.latent); }
  int64_t n_norms() const { return static_cast<int64_t>(state_.master.size() - n_scales_); }

  void clear_gradient() { std::fill(gradient_.begin(), gradient_.end(), 0.0f); }

  // Loss of the window under the current parameters; adds its gradient times `share`.
  double add_gradient(int64_t window, std::span<const int32_t> tokens, double share) {
    const ConstMatrix target = hidden(window, tokens);
    const int64_t n = std::ssize(tokens);
    std::vector<double> losses(tokens.size());
    BackwardTaps taps;
    taps.map = taps.head = [&](const LinearMap& map, ConstMatrix x, ConstMatrix dy) {
      if (const auto it = weights_.find(map.name); it != weights_.end())
        add_field_gradient(rt_, settings_.path, map.weight, x, dy, part(it->second.range),
                           tile_tap(it->second), sub_tap(it->second));
    };
    taps.norm = [&](const std::string& norm, std::span<const float> d) {
      const auto it = norms_.find(norm);
      if (it == norms_.end()) return;
      std::span<float> g = part(it->second.range);
      for (size_t i = 0; i < g.size(); ++i) g[i] += d[i];
    };
    taps.embed = [&](std::span<const int32_t> rows, ConstMatrix d) {
      const auto it = weights_.find(cut_.embedding.name);
      if (it == weights_.end()) return;
      const Weight& w = cut_.embedding.weight;
      add_row_field_gradient(rt_, w, rows, d, part(it->second.range), sub_tap(it->second));
      if (const TileTap tap = tile_tap(it->second))
        for (size_t t = 0; t < rows.size(); ++t)
          tap(rows[t], 1, 0, w.cols, d.row(static_cast<int64_t>(t)), d.stride);
    };
    backward(
        rt_, cut_, tokens,
        [&](int64_t first, ConstMatrix, Matrix l) {
          if (expected_.rows() < l.rows) expected_ = MatrixBuffer(l.rows, l.cols);
          const Matrix e = expected_.view().slice_rows(0, l.rows);
          const int64_t d = original_.d_model;
          logits(rt_, original_, settings_.path, {target.row(first), l.rows, d, target.stride}, e);
          kl_gradient(
              rt_, e, l, static_cast<float>(share / double(n)),
              std::span(losses).subspan(static_cast<size_t>(first), static_cast<size_t>(l.rows)));
        },
        taps, {.path = settings_.path});
    double sum = 0;
    for (double loss : losses) sum += loss;
    return sum / double(n);
  }

  // Adam on every parameter; the model then reads the rounded masters.
  void descend(int64_t step) {
    const double rate = rate_of(step) * share_of_steps();
    const double correct1 = 1 - std::pow(settings_.beta1, double(step + 1));
    const double correct2 = 1 - std::pow(settings_.beta2, double(step + 1));
    const auto b1 = static_cast<float>(settings_.beta1), b2 = static_cast<float>(settings_.beta2);
    const auto c1 = static_cast<float>(1 / correct1), c2 = static_cast<float>(1 / correct2);
    constexpr float kEpsilon = 1e-14f;
    constexpr int64_t kPiece = 1 << 14;
    const int64_t count = std::ssize(state_.master);
    rt_.pool.parallel_for(ceil_div(count, kPiece), [&](int64_t piece, int) {
      for (int64_t j = piece * kPiece; j < std::min(count, (piece + 1) * kPiece); ++j) {
        const auto i = static_cast<size_t>(j);
        // By the logarithm of the parameter: relative steps, and comparable gradients.
        const float g = gradient_[i] * size_[i];
        float& m = state_.mean[i];
        float& v = state_.square[i];
        m = b1 * m + (1 - b1) * g;
        v = b2 * v + (1 - b2) * g * g;
        const double most = i < n_scales_ ? settings_.scale_step : settings_.norm_step;
        const float move =
            static_cast<float>(rate * most) * (m * c1) / (std::sqrt(v * c2) + kEpsilon);
        state_.master[i] -= move * size_[i];
      }
    });
    for (auto& [name, w] : weights_)
      if (w.subs)
        move_sub_scales(rt_, w.map->weight, static_cast<float>(rate * settings_.sub_scale_step), b1,
                        b2, c1, c2, latent_scales(w));
    for (auto& [name, w] : weights_)
      if (w.latents)
        move_latent(rt_, w.map->weight, static_cast<float>(rate * settings_.rounding_step), b1, b2,
                    c1, c2, latents(w));
    publish();
  }

  // The masters' roundings into the model.
  void publish() {
    for (auto& [name, w] : weights_)
      write_fields(rt_, w.map->weight, part(state_.master, w.range), *w.bytes);
    for (auto& [name, w] : weights_)
      if (w.subs) write_sub_scales(rt_, w.map->weight, latent_scales(w).latent, *w.bytes);
    for (auto& [name, w] : weights_)
      if (w.latents) write_latent(rt_, w.map->weight, latents(w).latent, *w.bytes);
    for (auto& [name, n] : norms_) {
      const auto values = part(state_.master, n.range);
      std::copy(values.begin(), values.end(), n.gain->begin());
    }
  }

  std::map<std::string, std::vector<float>> by_tensor() {
    std::map<std::string, std::vector<float>> all;
    auto add = [&](const std::string& name, Range range) {
      const auto g = part(range);
      all[name].assign(g.begin(), g.end());
    };
    for (const auto& [name, w] : weights_) add(name, w.range);
    for (const auto& [name, n] : norms_) add(name, n.range);
    return all;
  }

  std::map<std::string, std::vector<float>> sub_scales_by_tensor() {
    std::map<std::string, std::vector<float>> all;
    for (const auto& [name, w] : weights_)
      if (w.subs) {
        const auto g = latent_scales(w).mean;
        all[name].assign(g.begin(), g.end());
      }
    return all;
  }

 private:
  void collect() {
    std::set<const std::byte*> originals;
    for (const LinearMap* map : linear_maps(original_))
      originals.insert(map->weight.data.bytes.data());
    size_t count = 0;
    auto range = [&](size_t n) {
      count += n;
      return Range{count - n, n};
    };
    for (LinearMap* map : linear_maps(cut_)) {
      Weight& w = map->weight;
      if (scale_offsets(w.dtype).empty()) continue;
      if (!settings_.kept && originals.contains(w.data.bytes.data())) continue;
      auto own = std::make_shared<AlignedBuffer<std::byte>>(static_cast<size_t>(w.bytes()));
      std::copy_n(w.data.bytes.data(), w.bytes(), own->data());
      w.data = {own, std::span<const std::byte>(own->data(), own->size())};
      weights_[map->name] = {map, range(static_cast<size_t>(n_fields(w))), own, {}, {}};
    }
    n_scales_ = count;
    for (const auto& norm : norms(cut_)) {
      const Tensor* tensor = cut_.file->find_tensor(norm.name);
      if (!tensor || tensor->dtype != Dtype::F32) continue;
      norms_[norm.name] = {norm.gain, range(norm.gain->size())};
    }
    state_.master.resize(count);
    state_.mean.resize(count);
    state_.square.resize(count);
    gradient_.resize(count);
    for (auto& [name, w] : weights_) read_fields(w.map->weight, part(state_.master, w.range));
    for (auto& [name, n] : norms_)
      std::copy(n.gain->begin(), n.gain->end(), part(state_.master, n.range).begin());
    size_.resize(count);
    for (size_t i = 0; i < count; ++i) size_[i] = std::fabs(state_.master[i]);
    share_latents();
  }

  // Learned codes are worth a little more than learned scales of sub-blocks, both together no more
  // than codes (docs/methods.md), but scales take a tenth of the memory: so first scales for every
  // weight, then codes in place of them while there is room; formats of the fewest bits first.
  void share_latents() {
    std::vector<FreeWeight*> order;
    for (auto& [name, w] : weights_) order.push_back(&w);
    auto bits = [](const FreeWeight* w) {
      const DtypeInfo& format = info(w->map->weight.dtype);
      return double(format.block_bytes) / double(format.block_length);
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](auto* a, auto* b) { return bits(a) < bits(b); });
    int64_t room = settings_.latent_bytes / int64_t{sizeof(float)};
    for (FreeWeight* w : order) {
      const int64_t n = n_sub_scales(w->map->weight);
      const auto& formats = settings_.sub_scale_formats;
      if (settings_.sub_scale_step <= 0 ||
          std::find(formats.begin(), formats.end(), w->map->weight.dtype) == formats.end())
        continue;
      if (n == 0 || 3 * n > room) continue;
      room -= 3 * n;
      w->subs = {0, static_cast<size_t>(n)};
    }
    size_t codes = 0, scales = 0;
    for (FreeWeight* w : order) {
      const Weight& weight = w->map->weight;
      const int64_t n = weight.rows * weight.cols, needed = 2 * n + n / kRoundingGroup;
      const int64_t freed = w->subs ? 3 * static_cast<int64_t>(w->subs->count) : 0;
      if (settings_.rounding_step > 0 && learns_rounding(weight.dtype) && needed <= room + freed) {
        room += freed - needed;
        w->latents = codes;
        codes += static_cast<size_t>(n);
        w->subs.reset();
      } else if (w->subs) {
        w->subs->begin = scales;
        scales += w->subs->count;
      }
    }
    for (auto* values : {&state_.sub_latent, &state_.sub_mean, &state_.sub_square})
      values->resize(scales);
    state_.latent.resize(codes);
    state_.latent_mean.resize(codes);
    state_.latent_square.resize(codes / kRoundingGroup);
    for (FreeWeight* w : order) {
      if (w->subs) start_sub_scales(w->map->weight, latent_scales(*w));
      if (w->latents) start_latent(rt_, w->map->weight, w->map->weight, latents(*w));
    }
    for (const LinearMap* map : linear_maps(original_))
      if (const auto it = weights_.find(map->name); it != weights_.end() && it->second.latents)
        start_latent(rt_, map->weight, it->second.map->weight, latents(it->second));
  }

  LatentScales latent_scales(const FreeWeight& w) {
    return {part(state_.sub_latent, *w.subs), part(state_.sub_mean, *w.subs),
            part(state_.sub_square, *w.subs)};
  }

  SubScaleTap sub_tap(const FreeWeight& w) {
    if (!w.subs) return {};
    return [this, &w, state = latent_scales(w)](int64_t block, std::span<const float> gradient) {
      add_sub_scale_gradient(w.map->weight, block, gradient, static_cast<float>(settings_.beta1),
                             static_cast<float>(settings_.beta2), state);
    };
  }

  LatentCodes latents(const FreeWeight& w) {
    const auto n = static_cast<size_t>(w.map->weight.rows * w.map->weight.cols);
    return {
        std::span(state_.latent).subspan(*w.latents, n),
        std::span(state_.latent_mean).subspan(*w.latents, n),
        std::span(state_.latent_square).subspan(*w.latents / kRoundingGroup, n / kRoundingGroup)};
  }

  TileTap tile_tap(const FreeWeight& w) {
    if (!w.latents) return {};
    return [this, &w, state = latents(w)](int64_t first, int64_t rows, int64_t column,
                                          int64_t width, const float* dw, int64_t stride) {
      add_latent_gradient(w.map->weight, first, rows, column, width, dw, stride,
                          static_cast<float>(settings_.beta1), static_cast<float>(settings_.beta2),
                          state);
    };
  }

  std::span<float> part(Range r) { return part(gradient_, r); }
  static std::span<float> part(std::vector<float>& all, Range r) {
    return std::span(all).subspan(r.begin, r.count);
  }

  double share_of_steps() const {
    return std::sqrt(std::clamp(state_.losses.front() / settings_.whole_steps_from, 0.0, 1.0));
  }

  double rate_of(int64_t step) const {
    const double up =
        settings_.warm_up > 0 ? std::min(1.0, double(step + 1) / double(settings_.warm_up)) : 1.0;
    const double turn = std::numbers::pi * double(step) / double(settings_.steps);
    const double low = settings_.decay_to;
    return up * (low + (1 - low) * 0.5 * (1 + std::cos(turn)));
  }

  // The original's normed final stream; kept where there is room, else until the next call.
  ConstMatrix hidden(int64_t window, std::span<const int32_t> tokens) {
    if (const auto it = hidden_.find(window); it != hidden_.end()) return it->second;
    KvCache cache(original_, 1, std::ssize(tokens));
    const Chunk chunk{0, tokens};
    MatrixBuffer out =
        forward(rt_, original_, cache, {&chunk, 1}, {.path = settings_.path, .tap = {}});
    const int64_t bytes = out.rows() * out.cols() * int64_t{sizeof(float)};
    if (kept_bytes_ + bytes > kHiddenBytes) return unkept_ = std::move(out);
    kept_bytes_ += bytes;
    return hidden_.emplace(window, std::move(out)).first->second;
  }

  const Runtime& rt_;
  const Model& original_;
  Model& cut_;
  const RefineSettings& settings_;
  std::map<std::string, FreeWeight> weights_;
  std::map<std::string, FreeNorm> norms_;
  size_t n_scales_ = 0;  // the first so many parameters; norms follow
  RefineState state_;
  std::vector<float> gradient_, size_;
  MatrixBuffer expected_;  // the original's logits of a slice
  std::map<int64_t, MatrixBuffer> hidden_;
  MatrixBuffer unkept_;
  int64_t kept_bytes_ = 0;
};

// Windows of a text are of one length, so the first stands for all.
int64_t windows_of_a_step(const std::vector<std::vector<int32_t>>& windows,
                          const RefineSettings& settings) {
  const int64_t length = std::max<int64_t>(1, std::ssize(windows.front()));
  return std::clamp<int64_t>(settings.step_tokens / length, 1, std::ssize(windows));
}

// The window that comes as number `step`: every pass over the windows in an order of its own.
int64_t window_of(int64_t step, int64_t n, uint64_t seed) {
  const auto pass = static_cast<uint64_t>(step / n);
  std::vector<int64_t> order(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) order[static_cast<size_t>(i)] = i;
  for (int64_t i = n - 1; i > 0; --i)
    std::swap(
        order[static_cast<size_t>(i)],
        order[random_bits(seed, pass, static_cast<uint64_t>(i)) % static_cast<uint64_t>(i + 1)]);
  return order[static_cast<size_t>(step % n)];
}

double mean(std::span<const double> values) {
  double sum = 0;
  for (double v : values) sum += v;
  return values.empty() ? 0 : sum / double(values.size());
}

size_t tenth(size_t n) {
  return std::min(n, std::max<size_t>(1, n / 10));
}

}  // namespace

double Refined::first_loss() const {
  return mean(std::span(losses).first(tenth(losses.size())));
}
double Refined::last_loss() const {
  return mean(std::span(losses).last(tenth(losses.size())));
}

KlSlope kl_slope(const Runtime& rt, const Model& original, const Model& cut,
                 std::span<const int32_t> window, bool kept, Path path) {
  Model copy = cut;
  RefineSettings settings;
  settings.sub_scale_formats.clear();
  for (const DtypeInfo& f : all_dtypes()) settings.sub_scale_formats.push_back(f.dtype);
  settings.kept = kept;
  settings.path = path;
  settings.beta1 = 0;  // running means are the gradient
  settings.rounding_step = 0;
  Refinement work(rt, original, copy, settings);
  KlSlope slope;
  slope.loss = work.add_gradient(0, window, 1);
  slope.by_tensor = work.by_tensor();
  slope.sub_scales = work.sub_scales_by_tensor();
  return slope;
}

void kl_gradient(const Runtime& rt, Matrix original, Matrix cut, float weight,
                 std::span<double> losses) {
  const Kernels& k = rt.kernels;
  const int64_t n = cut.cols;
  assert(original.rows == cut.rows && original.cols == n && std::ssize(losses) == cut.rows);
  MatrixBuffer scratch(rt.pool.size(), n);
  rt.pool.parallel_for(cut.rows, [&](int64_t t, int thread) {
    float* p = original.row(t);
    float* q = cut.row(t);
    float* difference = scratch.row(thread);  // log p - log q, less a constant
    for (int64_t v = 0; v < n; ++v) difference[v] = p[v] - q[v];
    const float top_p = k.max(p, n), top_q = k.max(q, n);
    const double sum_p = k.exp_sum(p, n, top_p), sum_q = k.exp_sum(q, n, top_q);
    double loss = 0;
    for (int64_t v = 0; v < n; ++v)
      if (p[v] > 0) loss += double(p[v]) * double(difference[v]);
    const double constant = double(top_p) + std::log(sum_p) - double(top_q) - std::log(sum_q);
    losses[static_cast<size_t>(t)] = loss / sum_p - constant;
    const auto scale_p = static_cast<float>(1 / sum_p), scale_q = static_cast<float>(1 / sum_q);
    for (int64_t v = 0; v < n; ++v) q[v] = (q[v] * scale_q - p[v] * scale_p) * weight;
  });
}

Refined refine(const Runtime& rt, const Model& original, const Model& cut,
               const std::vector<std::vector<int32_t>>& windows, const RefineSettings& settings) {
  if (windows.empty()) throw_error("refinement: there is no window of text");
  if (original.n_vocab != cut.n_vocab)
    throw_error("refinement: the original's vocabulary has {} tokens, the cut's {}",
                original.n_vocab, cut.n_vocab);
  Refined result{.model = cut, .losses = {}};
  Refinement work(rt, original, result.model, settings);
  result.n_scales = work.n_scales();
  result.n_norms = work.n_norms();
  result.n_codes = work.n_codes();
  RefineState& state = work.state();
  const bool keeps = !settings.checkpoint.empty();
  const std::string key = keeps ? refine_key(original, cut, windows, settings) : std::string();
  if (keeps && load_refine_state(settings.checkpoint, key, state)) work.publish();

  const int64_t together = windows_of_a_step(windows, settings);
  Progress progress("refining", static_cast<uint64_t>(settings.steps));
  progress.advance(state.losses.size());
  while (std::ssize(state.losses) < settings.steps) {
    const int64_t step = std::ssize(state.losses);
    work.clear_gradient();
    double loss = 0;
    for (int64_t i = 0; i < together; ++i) {
      const int64_t w = window_of(step * together + i, std::ssize(windows), settings.seed);
      loss += work.add_gradient(w, windows[static_cast<size_t>(w)], 1 / double(together)) /
              double(together);
    }
    state.losses.push_back(loss);
    work.descend(step);
    if (keeps && ((step + 1) % settings.checkpoint_every == 0 || step + 1 == settings.steps))
      save_refine_state(settings.checkpoint, key, state);
    progress.advance();
    if (settings.after_step) settings.after_step(step + 1, loss);
  }
  result.losses = state.losses;
  return result;
}

}  // namespace mt
