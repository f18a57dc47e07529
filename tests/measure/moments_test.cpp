#include "measure/moments.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "base/error.h"
#include "base/random.h"
#include "measure/place_loss.h"
#include "measure/self_text.h"
#include "run/backward.h"
#include "run/tiny.h"
#include "support/folder.h"

namespace mt {
namespace {

constexpr uint64_t kSeed = 7;

std::vector<std::vector<int32_t>> some_windows(int64_t n_vocab, int n, int64_t length) {
  std::vector<std::vector<int32_t>> windows(static_cast<size_t>(n));
  for (int w = 0; w < n; ++w)
    for (int64_t t = 0; t < length; ++t)
      windows[static_cast<size_t>(w)].push_back(
          static_cast<int32_t>(random_bits(3, uint64_t(w), uint64_t(t)) % uint64_t(n_vocab)));
  return windows;
}

class Moments : public testing::Test {
 protected:
  ThreadPool pool{1};
  Runtime rt{select_kernels(), pool};
  test::TemporaryFolder folder;
  int n_dbs = 0;

  std::unique_ptr<Measurements> new_db() {
    auto db = Measurements::open(folder / (std::to_string(n_dbs++) + ".db"));
    db->select_run(std::string(64, 'a'), std::string(64, 'b'), "test");
    return db;
  }
};

// Means of squares, column by column, the plain way.
struct Squares {
  std::vector<double> sum;
  void add(ConstMatrix x) {
    sum.resize(static_cast<size_t>(x.cols));
    for (int64_t t = 0; t < x.rows; ++t)
      for (int64_t i = 0; i < x.cols; ++i)
        sum[static_cast<size_t>(i)] += double(x.row(t)[i]) * double(x.row(t)[i]);
  }
};

void expect_means(const std::vector<float>& means, const Squares& plain, int64_t n_tokens,
                  const std::string& what) {
  ASSERT_EQ(means.size(), plain.sum.size()) << what;
  for (size_t i = 0; i < means.size(); ++i) {
    const double expected = plain.sum[i] / double(n_tokens);
    ASSERT_NEAR(double(means[i]), expected, 2e-6 * expected + 1e-30) << what << " " << i;
  }
}

TEST_F(Moments, OfADamagedModelAreRefusedAndNotKept) {
  Model model = open_tiny("tiny_llama");
  auto& gain = model.steps.back().sites.front().norm;
  gain[0] = NAN;
  auto db = new_db();
  EXPECT_THROW(measure_moments(rt, model, some_windows(model.n_vocab, 1, 12), kSeed, *db), Error);
  EXPECT_FALSE(db->value("model", "moments", "windows").has_value());
}

TEST_F(Moments, InputsAreWhatTheForwardPassFeedsEachMap) {
  for (const auto& name : kTinyModels) {
    SCOPED_TRACE(name);
    const Model model = open_tiny(name);
    const auto windows = some_windows(model.n_vocab, 2, 24);
    auto db = new_db();
    const Profile profile = measure_moments(rt, model, windows, kSeed, *db, Path::exact);
    EXPECT_EQ(profile.n_tokens, 48);

    std::map<std::pair<Point, int64_t>, Squares> seen;
    std::vector<double> head_out2(static_cast<size_t>(model.n_vocab));
    std::vector<double> share(static_cast<size_t>(model.n_vocab));
    for (const auto& window : windows) {
      ForwardOptions options;
      options.tap = [&](Point point, int64_t layer, Matrix value) {
        seen[{point, point == Point::head_in ? 0 : layer}].add(value);
      };
      const MatrixBuffer l = all_logits(rt, model, window, options);
      for (int64_t t = 0; t < l.rows(); ++t) {
        double top = l.row(t)[0], sum = 0;
        for (int64_t v = 0; v < l.cols(); ++v) top = std::max(top, double(l.row(t)[v]));
        for (int64_t v = 0; v < l.cols(); ++v) sum += std::exp(double(l.row(t)[v]) - top);
        for (int64_t v = 0; v < l.cols(); ++v) {
          const double p = std::exp(double(l.row(t)[v]) - top) / sum;
          head_out2[static_cast<size_t>(v)] += p * (1 - p) / 48;
        }
        share[static_cast<size_t>(window[static_cast<size_t>(t)])] += 1.0 / 48;
      }
    }
    auto check = [&](const LinearMap& map, Point point, int64_t layer) {
      ASSERT_TRUE(profile.maps.contains(map.name)) << map.name;
      expect_means(profile.maps.at(map.name).in2, seen.at({point, layer}), 48, map.name);
    };
    for (const Step& step : model.steps)
      for (const Site& site : step.sites) {
        if (const auto* a = std::get_if<Attention>(&site.what)) {
          for (const LinearMap* map : {&a->q, &a->k, &a->v})
            check(*map, Point::attn_in, step.layer);
          check(a->o, Point::attn_out, step.layer);
        } else {
          const auto& mlp = std::get<Mlp>(site.what);
          check(mlp.gate, Point::mlp_in, step.layer);
          check(mlp.up, Point::mlp_in, step.layer);
          check(mlp.down, Point::mlp_act, step.layer);
        }
      }
    check(model.head_map(), Point::head_in, 0);
    // The head's curvature is the softmax's own, p (1 - p); 1 - p rounds in f32.
    const auto& out2 = profile.maps.at(model.head_map().name).out2;
    for (size_t v = 0; v < out2.size(); ++v) EXPECT_NEAR(out2[v], head_out2[v], 1e-6);
    for (size_t v = 0; v < share.size(); ++v)
      EXPECT_NEAR(profile.token_share[v], 0.9 * share[v] + 0.1 / double(model.n_vocab), 1e-6);
  }
}

TEST_F(Moments, ProductsInBf16GiveNearlyTheSame) {
  for (const auto& name : kTinyModels) {
    SCOPED_TRACE(name);
    const Model model = open_tiny(name);
    const auto windows = some_windows(model.n_vocab, 2, 24);
    auto exact_db = new_db(), db = new_db();
    const Profile exact = measure_moments(rt, model, windows, kSeed, *exact_db, Path::exact);
    const Profile rounded = measure_moments(rt, model, windows, kSeed, *db);
    bool differ = false;
    for (const auto& [map, moments] : exact.maps) {
      const auto& in2 = rounded.maps.at(map).in2;
      differ |= in2 != moments.in2;
      const float largest = *std::max_element(moments.in2.begin(), moments.in2.end());
      for (size_t i = 0; i < in2.size(); ++i)
        ASSERT_NEAR(in2[i], moments.in2[i], 0.05f * largest) << map << " " << i;
    }
    EXPECT_TRUE(differ);
  }
}

TEST_F(Moments, OutputsAreTheGradientsAtLabelsTheModelDraws) {
  for (const auto& name : kTinyModels) {
    SCOPED_TRACE(name);
    const Model model = open_tiny(name);
    const auto windows = some_windows(model.n_vocab, 2, 24);
    auto db = new_db();
    const Profile profile = measure_moments(rt, model, windows, kSeed, *db, Path::exact);

    std::map<std::string, Squares> seen;
    Squares embedding;
    BackwardTaps taps;
    taps.map = [&](const LinearMap& map, ConstMatrix, ConstMatrix dy) { seen[map.name].add(dy); };
    taps.embed = [&](std::span<const int32_t>, ConstMatrix d) { embedding.add(d); };
    for (size_t w = 0; w < windows.size(); ++w)
      backward(
          rt, model, windows[w],
          [&](int64_t first, ConstMatrix, Matrix l) {
            // - d log p(label) / d logits = p - onehot(label)
            for (int64_t t = 0; t < l.rows; ++t) {
              std::vector<float> row(l.row(t), l.row(t) + l.cols);
              double total;
              const int64_t label =
                  draw(rt.kernels, row, random_uniform(kSeed, w, uint64_t(first + t)), total);
              for (int64_t v = 0; v < l.cols; ++v)
                l.row(t)[v] = float(double(row[size_t(v)]) / total) - (v == label ? 1.0f : 0.0f);
            }
          },
          taps);
    for (const auto& [map, squares] : seen) {
      const auto& means = profile.maps.at(map).out2;
      ASSERT_EQ(means.size(), squares.sum.size()) << map;
      double largest = 0;
      for (double s : squares.sum) largest = std::max(largest, s / 48);
      EXPECT_GT(largest, 0) << map;
      for (size_t i = 0; i < means.size(); ++i)
        ASSERT_NEAR(means[i], squares.sum[i] / 48, 1e-4 * largest) << map << " " << i;
    }
    EXPECT_EQ(seen.size() + 1, profile.maps.size());
    double largest = 0;
    for (double s : embedding.sum) largest = std::max(largest, s / 48);
    for (size_t i = 0; i < embedding.sum.size(); ++i)
      ASSERT_NEAR(profile.embedding_out2[i], embedding.sum[i] / 48, 1e-4 * largest);
  }
}

// What the moments are for: 1/2 sum out2_o in2_i dW_oi^2 is the KL divergence of small random
// changes, up to what the diagonal leaves out.
TEST_F(Moments, PredictTheDivergenceOfSmallRandomChanges) {
  const Model model = open_tiny("tiny_llama");
  const auto windows = some_windows(model.n_vocab, 4, 48);
  auto db = new_db();
  const Profile profile = measure_moments(rt, model, windows, kSeed, *db);
  PlaceLoss loss(rt, model, windows);
  for (const LinearMap* map : linear_maps(model)) {
    const Weight& w = map->weight;
    ASSERT_EQ(w.dtype, Dtype::F32);
    double predicted = 0, measured = 0;
    for (uint64_t draw_number = 0; draw_number < 4; ++draw_number) {
      auto bytes = std::make_shared<AlignedBuffer<std::byte>>(size_t(w.bytes()));
      auto* values = reinterpret_cast<float*>(bytes->data());
      std::copy_n(w.data.bytes.data(), w.bytes(), bytes->data());
      std::vector<float> weights(static_cast<size_t>(w.cols));
      for (int64_t r = 0; r < w.rows; ++r) {
        error_weights(profile, map->name, map == &model.embedding ? Role::embedding : Role::map, r,
                      weights);
        for (int64_t i = 0; i < w.cols; ++i) {
          const double change =
              0.02 * (random_uniform(draw_number, uint64_t(r), uint64_t(i)) - 0.5);
          values[r * w.cols + i] += float(change);
          predicted += double(weights[size_t(i)]) * change * change;
        }
      }
      Weight changed = w;
      changed.data = {bytes, std::span<const std::byte>(bytes->data(), bytes->size())};
      measured += loss.measure(map->name, changed);
    }
    EXPECT_GT(measured, predicted / 2) << map->name;
    EXPECT_LT(measured, predicted * 2) << map->name;
  }
}

TEST_F(Moments, AnInterruptedPassEndsWithTheSameValues) {
  const Model model = open_tiny("tiny_gemma3");
  const auto windows = some_windows(model.n_vocab, 5, 20);
  auto whole_db = new_db(), parts_db = new_db(), team_db = new_db();
  const Profile whole = measure_moments(rt, model, windows, kSeed, *whole_db);
  for (size_t n : {1, 2, 4}) {
    const std::vector<std::vector<int32_t>> first(windows.begin(), windows.begin() + long(n));
    measure_moments(rt, model, first, kSeed, *parts_db);
  }
  ThreadPool team(3);
  auto expect_same = [&](const Profile& p) {
    EXPECT_EQ(p.n_tokens, whole.n_tokens);
    EXPECT_EQ(p.token_share, whole.token_share);
    EXPECT_EQ(p.embedding_out2, whole.embedding_out2);
    ASSERT_EQ(p.maps.size(), whole.maps.size());
    for (const auto& [name, moments] : whole.maps) {
      EXPECT_EQ(p.maps.at(name).in2, moments.in2) << name;
      EXPECT_EQ(p.maps.at(name).out2, moments.out2) << name;
    }
  };
  expect_same(measure_moments(rt, model, windows, kSeed, *parts_db));
  expect_same(measure_moments(rt, model, windows, kSeed, *whole_db));  // all is there already
  expect_same(measure_moments({rt.kernels, team}, model, windows, kSeed, *team_db));
  auto other_db = new_db();
  EXPECT_NE(measure_moments(rt, model, windows, kSeed + 1, *other_db).embedding_out2,
            whole.embedding_out2);  // other labels
}

}  // namespace
}  // namespace mt
