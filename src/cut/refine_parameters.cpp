#include "cut/refine_parameters.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>

#include "base/checked.h"
#include "dtype/scale_fields.h"

namespace mt {

RefineParameters::Layout RefineParameters::lay_out(const Model& original, Model& cut,
                                                   const RefineSettings& settings,
                                                   const IsFree& is_free) {
  std::set<const std::byte*> originals;
  for (const LinearMap* map : linear_maps(original))
    originals.insert(map->weight.data.bytes.data());
  Layout layout;
  auto range = [&](size_t n) {
    layout.count += n;
    return Range{layout.count - n, n};
  };
  for (LinearMap* map : linear_maps(cut)) {
    const Weight& w = map->weight;
    if (is_free && !is_free(map->name)) continue;
    if (scale_offsets(w.dtype).empty()) continue;
    if (!settings.kept && originals.contains(w.data.bytes.data())) continue;
    layout.weights[map->name] = {map, range(static_cast<size_t>(n_fields(w))), {}, {}, {}};
  }
  layout.n_scales = layout.count;
  for (const auto& norm : norms(cut)) {
    if (is_free && !is_free(norm.name)) continue;
    const Tensor* tensor = cut.file->find_tensor(norm.name);
    if (!tensor || tensor->dtype != Dtype::F32) continue;
    layout.norms[norm.name] = {norm.gain, range(norm.gain->size())};
  }
  share_latents(layout, settings);
  return layout;
}

// Learned codes are worth a little more than learned scales of sub-blocks, both together no more
// than codes (docs/methods.md), but scales take a tenth of the memory: so first scales for every
// weight, then codes in place of them while there is room; formats of the fewest bits first.
void RefineParameters::share_latents(Layout& layout, const RefineSettings& settings) {
  std::vector<FreeWeight*> order;
  for (auto& [name, w] : layout.weights) order.push_back(&w);
  auto bits = [](const FreeWeight* w) {
    const DtypeInfo& format = info(w->map->weight.dtype);
    return double(format.block_bytes) / double(format.block_length);
  };
  std::stable_sort(order.begin(), order.end(), [&](auto* a, auto* b) { return bits(a) < bits(b); });
  int64_t room = settings.latent_bytes / int64_t{sizeof(float)};
  for (FreeWeight* w : order) {
    const int64_t n = n_sub_scales(w->map->weight);
    const auto& formats = settings.sub_scale_formats;
    if (settings.sub_scale_step <= 0 ||
        std::find(formats.begin(), formats.end(), w->map->weight.dtype) == formats.end())
      continue;
    if (n == 0 || 3 * n > room) continue;
    room -= 3 * n;
    w->subs = {0, static_cast<size_t>(n)};
  }
  for (FreeWeight* w : order) {
    const Weight& weight = w->map->weight;
    const int64_t n = weight.rows * weight.cols, needed = 2 * n + n / kRoundingGroup;
    const int64_t freed = w->subs ? 3 * static_cast<int64_t>(w->subs->count) : 0;
    if (settings.rounding_step > 0 && learns_rounding(weight.dtype) && needed <= room + freed) {
      room += freed - needed;
      w->latents = layout.codes;
      layout.codes += static_cast<size_t>(n);
      w->subs.reset();
    } else if (w->subs) {
      w->subs->begin = layout.subs;
      layout.subs += w->subs->count;
    }
  }
}

RefineParameters::RefineParameters(const Runtime& rt, const Model& original, Model& cut,
                                   const RefineSettings& settings, const IsFree& is_free)
    : rt_(rt),
      settings_(settings),
      embedding_(&cut.embedding),
      layout_(lay_out(original, cut, settings, is_free)) {
  for (auto& [name, free] : layout_.weights) {
    Weight& w = free.map->weight;
    free.bytes = std::make_shared<AlignedBuffer<std::byte>>(static_cast<size_t>(w.bytes()));
    std::copy_n(w.data.bytes.data(), w.bytes(), free.bytes->data());
    w.data = {free.bytes, std::span<const std::byte>(free.bytes->data(), free.bytes->size())};
  }
  for (auto* values : {&state_.master, &state_.mean, &state_.square, &gradient_, &size_})
    values->resize(layout_.count);
  for (auto& [name, w] : layout_.weights) read_fields(w.map->weight, part(state_.master, w.range));
  for (auto& [name, n] : layout_.norms)
    std::copy(n.gain->begin(), n.gain->end(), part(state_.master, n.range).begin());
  for (size_t i = 0; i < size_.size(); ++i) size_[i] = std::fabs(state_.master[i]);
  start_latents(original);
}

void RefineParameters::start_latents(const Model& original) {
  for (auto* values : {&state_.sub_latent, &state_.sub_mean, &state_.sub_square})
    values->resize(layout_.subs);
  state_.latent.resize(layout_.codes);
  state_.latent_mean.resize(layout_.codes);
  state_.latent_square.resize(layout_.codes / kRoundingGroup);
  for (const auto& [name, w] : layout_.weights) {
    if (w.subs) start_sub_scales(w.map->weight, latent_scales(w));
    if (w.latents) start_latent(rt_, w.map->weight, w.map->weight, latents(w));
  }
  for (const LinearMap* map : linear_maps(original))
    if (const auto it = layout_.weights.find(map->name);
        it != layout_.weights.end() && it->second.latents)
      start_latent(rt_, map->weight, it->second.map->weight, latents(it->second));
}

int64_t RefineParameters::bytes(const Model& original, Model cut, const RefineSettings& settings,
                                const IsFree& is_free) {
  const auto layout = lay_out(original, cut, settings, is_free);
  size_t floats = 5 * layout.count + 3 * layout.subs + 2 * layout.codes;
  floats += layout.codes / kRoundingGroup;
  int64_t own = 0;
  for (const auto& [name, w] : layout.weights) own += w.map->weight.bytes();
  return own + static_cast<int64_t>(floats * sizeof(float));
}

std::set<std::string> RefineParameters::names(const Model& original, Model cut,
                                              const RefineSettings& settings,
                                              const IsFree& is_free) {
  const auto layout = lay_out(original, cut, settings, is_free);
  std::set<std::string> all;
  for (const auto& [name, w] : layout.weights) all.insert(name);
  for (const auto& [name, n] : layout.norms) all.insert(name);
  return all;
}

void RefineParameters::clear_gradient() {
  std::fill(gradient_.begin(), gradient_.end(), 0.0f);
}

BackwardTaps RefineParameters::taps() {
  BackwardTaps taps;
  taps.map = taps.head = [this](const LinearMap& map, ConstMatrix x, ConstMatrix dy) {
    if (const auto it = layout_.weights.find(map.name); it != layout_.weights.end())
      add_field_gradient(rt_, settings_.path, map.weight, x, dy, part(it->second.range),
                         tile_tap(it->second), sub_tap(it->second));
  };
  taps.norm = [this](const std::string& norm, std::span<const float> d) {
    const auto it = layout_.norms.find(norm);
    if (it == layout_.norms.end()) return;
    std::span<float> g = part(it->second.range);
    for (size_t i = 0; i < g.size(); ++i) g[i] += d[i];
  };
  taps.embed = [this](std::span<const int32_t> rows, ConstMatrix d) {
    const auto it = layout_.weights.find(embedding_->name);
    if (it == layout_.weights.end()) return;
    const Weight& w = embedding_->weight;
    add_row_field_gradient(rt_, w, rows, d, part(it->second.range), sub_tap(it->second));
    if (const TileTap tap = tile_tap(it->second))
      for (size_t t = 0; t < rows.size(); ++t)
        tap(rows[t], 1, 0, w.cols, d.row(static_cast<int64_t>(t)), d.stride);
  };
  return taps;
}

void RefineParameters::descend(int64_t step, double share) {
  const double rate = rate_of(step) * share;
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
      const double most = i < layout_.n_scales ? settings_.scale_step : settings_.norm_step;
      const float move =
          static_cast<float>(rate * most) * (m * c1) / (std::sqrt(v * c2) + kEpsilon);
      state_.master[i] -= move * size_[i];
    }
  });
  for (auto& [name, w] : layout_.weights)
    if (w.subs)
      move_sub_scales(rt_, w.map->weight, static_cast<float>(rate * settings_.sub_scale_step), b1,
                      b2, c1, c2, latent_scales(w));
  for (auto& [name, w] : layout_.weights)
    if (w.latents)
      move_latent(rt_, w.map->weight, static_cast<float>(rate * settings_.rounding_step), b1, b2,
                  c1, c2, latents(w));
  publish();
}

void RefineParameters::publish() {
  for (auto& [name, w] : layout_.weights)
    write_fields(rt_, w.map->weight, part(state_.master, w.range), *w.bytes);
  for (auto& [name, w] : layout_.weights)
    if (w.subs) write_sub_scales(rt_, w.map->weight, latent_scales(w).latent, *w.bytes);
  for (auto& [name, w] : layout_.weights)
    if (w.latents) write_latent(rt_, w.map->weight, latents(w).latent, *w.bytes);
  for (auto& [name, n] : layout_.norms) {
    const auto values = part(state_.master, n.range);
    std::copy(values.begin(), values.end(), n.gain->begin());
  }
}

std::map<std::string, std::vector<float>> RefineParameters::by_tensor() {
  std::map<std::string, std::vector<float>> all;
  auto add = [&](const std::string& name, Range range) {
    const auto g = part(range);
    all[name].assign(g.begin(), g.end());
  };
  for (const auto& [name, w] : layout_.weights) add(name, w.range);
  for (const auto& [name, n] : layout_.norms) add(name, n.range);
  return all;
}

std::map<std::string, std::vector<float>> RefineParameters::sub_scales_by_tensor() {
  std::map<std::string, std::vector<float>> all;
  for (const auto& [name, w] : layout_.weights)
    if (w.subs) {
      const auto g = latent_scales(w).mean;
      all[name].assign(g.begin(), g.end());
    }
  return all;
}

LatentScales RefineParameters::latent_scales(const FreeWeight& w) {
  return {part(state_.sub_latent, *w.subs), part(state_.sub_mean, *w.subs),
          part(state_.sub_square, *w.subs)};
}

SubScaleTap RefineParameters::sub_tap(const FreeWeight& w) {
  if (!w.subs) return {};
  return [this, &w, state = latent_scales(w)](int64_t block, std::span<const float> gradient) {
    add_sub_scale_gradient(w.map->weight, block, gradient, static_cast<float>(settings_.beta1),
                           static_cast<float>(settings_.beta2), state);
  };
}

LatentCodes RefineParameters::latents(const FreeWeight& w) {
  const auto n = static_cast<size_t>(w.map->weight.rows * w.map->weight.cols);
  return {std::span(state_.latent).subspan(*w.latents, n),
          std::span(state_.latent_mean).subspan(*w.latents, n),
          std::span(state_.latent_square).subspan(*w.latents / kRoundingGroup, n / kRoundingGroup)};
}

TileTap RefineParameters::tile_tap(const FreeWeight& w) {
  if (!w.latents) return {};
  return [this, &w, state = latents(w)](int64_t first, int64_t rows, int64_t column, int64_t width,
                                        const float* dw, int64_t stride) {
    add_latent_gradient(w.map->weight, first, rows, column, width, dw, stride,
                        static_cast<float>(settings_.beta1), static_cast<float>(settings_.beta2),
                        state);
  };
}

double RefineParameters::rate_of(int64_t step) const {
  const double up =
      settings_.warm_up > 0 ? std::min(1.0, double(step + 1) / double(settings_.warm_up)) : 1.0;
  const double turn = std::numbers::pi * double(step) / double(settings_.steps);
  const double low = settings_.decay_to;
  return up * (low + (1 - low) * 0.5 * (1 + std::cos(turn)));
}

}  // namespace mt
