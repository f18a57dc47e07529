#include "cut/refine_layers.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "base/files.h"
#include "cut/refine_parameters.h"
#include "cut/refine_state.h"
#include "cut/tiny_cuts.h"
#include "dtype/scale_fields.h"
#include "run/layers.h"
#include "support/folder.h"

namespace mt {
namespace {

using Windows = std::vector<std::vector<int32_t>>;

MatrixBuffer through(const Runtime& rt, const Model& layer, const MatrixBuffer& stream) {
  KvCache cache(layer, 1, stream.rows());
  const std::vector<int32_t> tokens(static_cast<size_t>(stream.rows()));
  const Chunk chunk{0, tokens};
  ForwardOptions options;
  options.stream = &stream;
  options.end_step = std::ssize(layer.steps);
  return forward(rt, layer, cache, {&chunk, 1}, options);
}

MatrixBuffer embedded(const Runtime& rt, const Model& model, const std::vector<int32_t>& window) {
  MatrixBuffer stream(std::ssize(window), model.d_model);
  embed(rt, model, window, stream);
  return stream;
}

// The error of the stream after the last layer, as a share of what the last layer adds.
double error_at_the_end(const Runtime& rt, const Model& original, const Model& cut,
                        const Windows& windows) {
  double sum = 0, energy = 0;
  for (const auto& window : windows) {
    MatrixBuffer target = embedded(rt, original, window), stream = embedded(rt, cut, window);
    for (int64_t l = 0; l < original.n_layers; ++l) {
      MatrixBuffer next = through(rt, layer_of(original, l), target);
      if (l + 1 == original.n_layers) energy += stream_distance(rt, target, next, {});
      target = std::move(next);
      stream = through(rt, layer_of(cut, l), stream);
    }
    sum += stream_distance(rt, stream, target, {});
  }
  return sum / energy;
}

class RefineLayersTest : public testing::Test {
 protected:
  RefineSettings quick(int64_t steps) {
    RefineSettings s = quick_refinement(steps);
    s.by = RefineBy::layer;
    return s;
  }
  ThreadPool pool_{2};
  Runtime rt_{select_kernels(), pool_};
  test::TemporaryFolder folder_;
};

TEST_F(RefineLayersTest, LayersOneByOneAreTheWholeModel) {
  for (const auto& name : kTinyModels) {
    const Model model = open_tiny(name);
    const Windows windows = random_windows(model.n_vocab, 1, 24, 5);
    MatrixBuffer stream = embedded(rt_, model, windows[0]);
    for (int64_t l = 0; l < model.n_layers; ++l) stream = through(rt_, layer_of(model, l), stream);
    KvCache cache(model, 1, 24);
    const Chunk chunk{0, windows[0]};
    ForwardOptions options;
    options.end_step = std::ssize(model.steps);
    const MatrixBuffer whole = forward(rt_, model, cache, {&chunk, 1}, options);
    EXPECT_EQ(std::memcmp(stream.data(), whole.data(), size_t(24 * model.d_model) * sizeof(float)),
              0)
        << name;
    Model back = model;
    for (Step& step : back.steps) step.sites.clear();
    for (int64_t l = 0; l < model.n_layers; ++l) put_layer(back, l, layer_of(model, l));
    EXPECT_TRUE(same_weights(model, back)) << name;
  }
}

// Of the distance itself, weighted by channels, through one layer of a cut.
TEST_F(RefineLayersTest, GradientsOfALayerAgreeWithCentralDifferences) {
  for (const auto& name : kTinyModels) {
    const Model model = open_tiny(name);
    const Model cut =
        cut_to(rt_, model, {Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_1, Dtype::IQ4_NL, Dtype::Q2_0});
    const int64_t l = model.n_layers - 1;
    Model layer = layer_of(cut, l);
    const Model from = layer_of(model, l);
    const Windows windows = random_windows(model.n_vocab, 1, 24, 5);
    const MatrixBuffer in = embedded(rt_, cut, windows[0]);
    const MatrixBuffer target = through(rt_, from, embedded(rt_, model, windows[0]));
    std::vector<float> weights;
    for (int64_t c = 0; c < model.d_model; ++c) weights.push_back(0.5f + 0.1f * float(c % 7));
    auto loss = [&] {
      return 0.3 * stream_distance(rt_, through(rt_, layer, in), target, weights);
    };
    RefineSettings settings = quick(1);
    settings.path = Path::exact;
    RefineParameters work(rt_, from, layer, settings, [&](const std::string& tensor) {
      return tensor != layer.embedding.name && tensor != kFinalNorm &&
             !(layer.head && tensor == layer.head->name);
    });
    work.clear_gradient();
    double told = 0;
    backward_of_steps(
        rt_, layer,
        [&](Matrix out) { told = 0.3 * stream_gradient(rt_, out, target, weights, 0.3); },
        work.taps(), {.path = Path::exact, .stream = &in});
    const double at = loss();
    EXPECT_NEAR(told, at, 1e-6 * at) << name;
    const auto gradients = work.by_tensor();
    EXPECT_EQ(gradients.size(),
              linear_maps(layer).size() - (layer.head ? 2 : 1) + norms(layer).size() - 1)
        << name;
    auto check = [&](double analytic, double up, double down, double step, double scale,
                     const std::string& what) {
      const double numeric = (up - down) / step;
      EXPECT_NEAR(analytic, numeric, 0.03 * std::fabs(numeric) + 1e-4 * scale * at)
          << name << " " << what;
    };
    for (LinearMap* map : linear_maps(layer)) {
      if (!gradients.contains(map->name)) continue;
      const auto& g = gradients.at(map->name);
      std::vector<float> fields(g.size());
      read_fields(map->weight, fields);
      const size_t top = heaviest_field(g, fields);
      const FieldDifference d = field_difference(rt_, *map, top, loss);
      ASSERT_NE(d.step, 0) << map->name;
      check(g[top], d.up, d.down, d.step, 1 / std::fabs(double(fields[top])), map->name);
    }
    for (const auto& norm : norms(layer)) {
      if (!gradients.contains(norm.name)) continue;
      const auto& g = gradients.at(norm.name);
      for (size_t i : {size_t{0}, g.size() - 1}) {
        const float value = (*norm.gain)[i], h = 0.004f;
        (*norm.gain)[i] = value + h;
        const double up = loss();
        (*norm.gain)[i] = value - h;
        const double down = loss();
        (*norm.gain)[i] = value;
        check(double(g[i]), up, down, 2 * double(h), 1, norm.name);
      }
    }
  }
}

TEST_F(RefineLayersTest, LowersErrorAndLossOnTextItHasNotSeen) {
  for (const auto& name : kTinyModels) {
    const Model model = open_tiny(name);
    const Windows seen = random_windows(model.n_vocab, 16, 64, 1);
    const Windows held_out = random_windows(model.n_vocab, 4, 64, 2);
    const Model cut = cut_to(rt_, model, {Dtype::Q4_1, Dtype::Q2_0});
    const double error = error_at_the_end(rt_, model, cut, held_out);
    const double loss = kl(rt_, model, cut, held_out);
    const Refined refined = refine(rt_, model, cut, seen, quick(48));
    EXPECT_TRUE(refined.by_layer);
    EXPECT_EQ(std::ssize(refined.losses), 48 * (model.n_layers + 1));
    const double last = std::accumulate(refined.losses.end() - 4, refined.losses.end(), 0.0) / 4;
    EXPECT_EQ(refined.last_loss(), last) << name;
    const auto end = refined.losses.end() - 48;
    EXPECT_EQ(refined.first_loss(), std::accumulate(end, end + 4, 0.0) / 4) << name;
    EXPECT_LT(error_at_the_end(rt_, model, refined.model, held_out), 0.97 * error) << name;
    EXPECT_LT(kl(rt_, model, refined.model, held_out), 0.97 * loss) << name;
    EXPECT_EQ(kl(rt_, model, cut, held_out), loss) << "the cut given was changed";
  }
}

TEST_F(RefineLayersTest, GivesTheSameBytesWithAnyNumberOfThreadsAndInEveryTable) {
  const Model model = open_tiny("tiny_gemma3");
  const Model cut = cut_to(rt_, model, {Dtype::Q4_0, Dtype::Q2_0});
  const Windows windows = random_windows(model.n_vocab, 3, 70, 1);
  ThreadPool one(1), three(3);
  const Refined a = refine({rt_.kernels, one}, model, cut, windows, quick(4));
  const Refined b = refine({rt_.kernels, three}, model, cut, windows, quick(4));
  const Refined c = refine({reference_kernels(), pool_}, model, cut, windows, quick(4));
  EXPECT_TRUE(same_weights(a.model, b.model));
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_TRUE(same_weights(a.model, c.model));
  EXPECT_EQ(a.losses, c.losses);
  EXPECT_FALSE(same_weights(a.model, cut));
}

TEST_F(RefineLayersTest, InterruptedItGoesOnAndEndsAlike) {
  const Model model = open_tiny("tiny_qwen3");
  const Model cut = cut_to(rt_, model, {Dtype::Q4_0});
  const Windows windows = random_windows(model.n_vocab, 4, 24, 1);
  RefineSettings settings = quick(5);
  const Refined undisturbed = refine(rt_, model, cut, windows, settings);
  settings.checkpoint = folder_ / "state";
  settings.after_step = [](int64_t done, double) {
    if (done == 8) throw_error("stopped");
  };
  EXPECT_THROW(refine(rt_, model, cut, windows, settings), Error);
  std::vector<int64_t> steps;
  settings.after_step = [&](int64_t done, double) { steps.push_back(done); };
  const Refined resumed = refine(rt_, model, cut, windows, settings);
  ASSERT_FALSE(steps.empty());
  EXPECT_EQ(steps.front(), 6);  // the first layer is there
  EXPECT_EQ(steps.back(), 5 * (model.n_layers + 1));
  EXPECT_TRUE(same_weights(undisturbed.model, resumed.model));
  EXPECT_EQ(undisturbed.losses, resumed.losses);
  steps.clear();
  const Refined again = refine(rt_, model, cut, windows, settings);
  EXPECT_TRUE(steps.empty());
  EXPECT_TRUE(same_weights(undisturbed.model, again.model));
  // One damaged byte of the first layer, and of no other: it alone is refined again.
  const auto damaged = part_of_state(settings.checkpoint, 0);
  std::string bytes = read_text_file(damaged);
  bytes[bytes.size() / 2] ^= 1;
  std::filesystem::remove(damaged);  // the mapped one stays as it is
  test::write_bytes(damaged, bytes);
  EXPECT_TRUE(same_weights(undisturbed.model, refine(rt_, model, cut, windows, settings).model));
  EXPECT_EQ(steps, (std::vector<int64_t>{1, 2, 3, 4, 5}));
  steps.clear();
  settings.seed = 2;
  EXPECT_FALSE(same_weights(undisturbed.model, refine(rt_, model, cut, windows, settings).model));
  EXPECT_EQ(std::ssize(steps), 5 * (model.n_layers + 1));
  remove_refine_state(settings.checkpoint);
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
  EXPECT_FALSE(same_weights(again.model, cut)) << "what was mapped is gone";
}

TEST_F(RefineLayersTest, TheModeFollowsTheRoomUnlessItIsAskedFor) {
  for (const auto& name : kTinyModels) {
    const Model model = open_tiny(name);
    const Model cut = cut_to(rt_, model, {Dtype::Q4_0});
    const Windows windows = random_windows(model.n_vocab, 2, 24, 1);
    RefineSettings settings = quick(2);
    settings.by = RefineBy::automatic;
    const int64_t needed = whole_refinement_bytes(model, cut, windows, settings);
    settings.room_bytes = needed;
    const Refined whole = refine(rt_, model, cut, windows, settings);
    EXPECT_FALSE(whole.by_layer) << name;
    EXPECT_EQ(whole.needed_bytes, needed);
    settings.room_bytes = needed - 1;
    const Refined layers = refine(rt_, model, cut, windows, settings);
    EXPECT_TRUE(layers.by_layer) << name;
    EXPECT_EQ(layers.room_bytes, needed - 1);
    settings.by = RefineBy::model;
    EXPECT_TRUE(same_weights(whole.model, refine(rt_, model, cut, windows, settings).model));
    settings.by = RefineBy::layer;
    settings.room_bytes = needed;
    EXPECT_TRUE(same_weights(layers.model, refine(rt_, model, cut, windows, settings).model));
    EXPECT_FALSE(same_weights(layers.model, whole.model)) << name;
  }
}

TEST_F(RefineLayersTest, FewerWindowsWhereTheirStreamsHaveNoRoom) {
  const Model model = open_tiny("tiny_llama");
  const Model cut = cut_to(rt_, model, {Dtype::Q4_0});
  const Windows windows = random_windows(model.n_vocab, 8, 24, 1);
  RefineSettings settings = quick(3);
  settings.stream_bytes = 3 * 2 * 24 * model.d_model * int64_t{sizeof(float)};
  const Refined few = refine(rt_, model, cut, windows, settings);
  EXPECT_EQ(few.n_windows, 3);
  settings.stream_bytes -= 1;
  EXPECT_EQ(refine(rt_, model, cut, windows, settings).n_windows, 2);
  settings.stream_bytes = 0;
  EXPECT_EQ(refine(rt_, model, cut, windows, settings).n_windows, 1);
  // Evenly apart.
  settings.stream_bytes = int64_t{1} << 30;
  EXPECT_TRUE(same_weights(
      few.model, refine(rt_, model, cut, {windows[0], windows[2], windows[5]}, settings).model));
}

}  // namespace
}  // namespace mt
