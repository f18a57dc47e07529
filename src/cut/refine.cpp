#include "cut/refine.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "base/machine.h"
#include "base/progress.h"
#include "base/random.h"
#include "cut/refine_layers.h"
#include "cut/refine_parameters.h"
#include "cut/refine_state.h"

namespace mt {
namespace {

// Hidden states of the original are kept for windows that come again, up to so many bytes.
constexpr int64_t kHiddenBytes = 256 << 20;
// Logits that a backward pass has at a time, about.
constexpr int64_t kLogitsSlice = int64_t{1} << 24;

// The original's normed final streams; kept where there is room, else until the next call.
class HiddenStreams {
 public:
  HiddenStreams(const Runtime& rt, const Model& original, Path path)
      : rt_(rt), original_(original), path_(path) {}

  ConstMatrix of(int64_t window, std::span<const int32_t> tokens) {
    if (const auto it = hidden_.find(window); it != hidden_.end()) return it->second;
    KvCache cache(original_, 1, std::ssize(tokens));
    const Chunk chunk{0, tokens};
    MatrixBuffer out = forward(rt_, original_, cache, {&chunk, 1}, {.path = path_, .tap = {}});
    const int64_t bytes = out.rows() * out.cols() * int64_t{sizeof(float)};
    if (kept_bytes_ + bytes > kHiddenBytes) return unkept_ = std::move(out);
    kept_bytes_ += bytes;
    return hidden_.emplace(window, std::move(out)).first->second;
  }

 private:
  const Runtime& rt_;
  const Model& original_;
  Path path_;
  std::map<int64_t, MatrixBuffer> hidden_;
  MatrixBuffer unkept_;
  int64_t kept_bytes_ = 0;
};

double mean(std::span<const double> values) {
  double sum = 0;
  for (double v : values) sum += v;
  return values.empty() ? 0 : sum / double(values.size());
}

size_t tenth(size_t n) {
  return std::min(n, std::max<size_t>(1, n / 10));
}

}  // namespace

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

double KlGradient::add(const Model& cut, std::span<const int32_t> tokens, ConstMatrix target,
                       double share, const BackwardTaps& taps, const MatrixBuffer* stream) {
  const int64_t n = std::ssize(tokens);
  std::vector<double> losses(tokens.size());
  backward(rt_, cut, tokens,
           [&](int64_t first, ConstMatrix, Matrix l) {
             if (expected_.rows() < l.rows) expected_ = MatrixBuffer(l.rows, l.cols);
             const Matrix e = expected_.view().slice_rows(0, l.rows);
             const int64_t d = original_.d_model;
             logits(rt_, original_, path_, {target.row(first), l.rows, d, target.stride}, e);
             kl_gradient(rt_, e, l, static_cast<float>(share / double(n)),
                         std::span(losses).subspan(static_cast<size_t>(first),
                                                   static_cast<size_t>(l.rows)));
           },
           taps, {.path = path_, .stream = stream});
  double sum = 0;
  for (double loss : losses) sum += loss;
  return sum / double(n);
}

double Refined::first_loss() const {
  const auto kls = std::span(losses).subspan(first_kl);
  return mean(kls.first(tenth(kls.size())));
}
double Refined::last_loss() const {
  const auto kls = std::span(losses).subspan(first_kl);
  return mean(kls.last(tenth(kls.size())));
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
  RefineParameters work(rt, original, copy, settings);
  HiddenStreams hidden(rt, original, path);
  KlGradient gradient(rt, original, path);
  KlSlope slope;
  slope.loss = gradient.add(copy, window, hidden.of(0, window), 1, work.taps());
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

int64_t whole_refinement_bytes(const Model& original, const Model& cut,
                               const std::vector<std::vector<int32_t>>& windows,
                               const RefineSettings& settings) {
  int64_t n = 0, all = 0, state = 0, widest = 0, cached = 0;
  for (const auto& window : windows) {
    n = std::max<int64_t>(n, std::ssize(window));
    all += std::ssize(window);
  }
  for (const Step& step : cut.steps)
    for (const Site& site : step.sites) {
      // Of a site's backward pass: what it computed, and the gradient of each.
      if (const auto* a = std::get_if<Attention>(&site.what)) {
        cached += 2 * a->k.weight.rows;
        widest = std::max(widest, 4 * a->q.weight.rows + 4 * a->k.weight.rows);
      } else {
        widest = std::max(widest, 4 * std::get<Mlp>(site.what).gate.weight.rows);
      }
    }
  state = RefineParameters::bytes(original, cut, settings);
  const BackwardOptions usual;
  const int64_t streams = (std::ssize(cut.steps) + 6) * cut.d_model;
  const int64_t logits =
      3 * std::min(n, kLogitsSlice / std::max<int64_t>(1, cut.n_vocab) + 128) * cut.n_vocab;
  return state + usual.kept_bytes +
         std::min(kHiddenBytes, all * original.d_model * int64_t{sizeof(float)}) +
         int64_t{sizeof(float)} * (n * (streams + widest + cached) + logits);
}

namespace {

// The models' own bytes count too: pages of a file that there is no room for are read again at
// every step.
void decide(const Model& original, const Model& cut,
            const std::vector<std::vector<int32_t>>& windows, const RefineSettings& settings,
            Refined& result) {
  result.by_layer = settings.by == RefineBy::layer;
  if (settings.by != RefineBy::automatic) return;
  int64_t source = 0;
  for (const LinearMap* map : linear_maps(original)) source += map->weight.bytes();
  result.needed_bytes = whole_refinement_bytes(original, cut, windows, settings);
  result.room_bytes = settings.room_bytes > 0
                          ? settings.room_bytes
                          : std::min(free_address_bytes(), free_memory_bytes() - source);
  result.by_layer = result.needed_bytes > result.room_bytes;
}

Refined refine_model(const Runtime& rt, const Model& original, const Model& cut,
                     const std::vector<std::vector<int32_t>>& windows,
                     const RefineSettings& settings) {
  Refined result{.model = cut, .losses = {}};
  RefineParameters work(rt, original, result.model, settings);
  HiddenStreams hidden(rt, original, settings.path);
  KlGradient gradient(rt, original, settings.path);
  const BackwardTaps taps = work.taps();
  result.n_windows = std::ssize(windows);
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
      const std::vector<int32_t>& window = windows[static_cast<size_t>(w)];
      loss += gradient.add(result.model, window, hidden.of(w, window), 1 / double(together), taps) /
              double(together);
    }
    state.losses.push_back(loss);
    const double whole = state.losses.front() / settings.whole_steps_from;
    work.descend(step, std::sqrt(std::clamp(whole, 0.0, 1.0)));
    if (keeps && ((step + 1) % settings.checkpoint_every == 0 || step + 1 == settings.steps))
      save_refine_state(settings.checkpoint, key, state);
    progress.advance();
    if (settings.after_step) settings.after_step(step + 1, loss);
  }
  result.losses = state.losses;
  return result;
}

}  // namespace

Refined refine(const Runtime& rt, const Model& original, const Model& cut,
               const std::vector<std::vector<int32_t>>& windows, const RefineSettings& settings) {
  if (windows.empty()) throw_error("refinement: there is no window of text");
  if (original.n_vocab != cut.n_vocab)
    throw_error("refinement: the original's vocabulary has {} tokens, the cut's {}",
                original.n_vocab, cut.n_vocab);
  Refined decided;
  decide(original, cut, windows, settings, decided);
  Refined result = decided.by_layer ? refine_layers(rt, original, cut, windows, settings)
                                    : refine_model(rt, original, cut, windows, settings);
  result.needed_bytes = decided.needed_bytes;
  result.room_bytes = decided.room_bytes;
  return result;
}

}  // namespace mt
