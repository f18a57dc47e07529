#include "cut/learned_rounding.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <random>

#include "base/error.h"
#include "cut/encode.h"
#include "cut/refine.h"
#include "run/tiny.h"

namespace mt {
namespace {

constexpr Dtype kLearned[] = {Dtype::Q1_0, Dtype::Q2_0, Dtype::TQ2_0, Dtype::Q2_K, Dtype::Q3_K};

class LearnedRoundingTest : public testing::Test {
 protected:
  // rows x 512 in F32.
  Weight random_weight(int64_t rows) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    Weight w;
    w.dtype = Dtype::F32;
    w.rows = rows;
    w.cols = 512;
    auto own = std::make_shared<AlignedBuffer<std::byte>>(static_cast<size_t>(w.bytes()));
    for (int64_t i = 0; i < rows * w.cols; ++i) {
      const float x = normal(random);
      std::memcpy(own->data() + i * 4, &x, 4);
    }
    w.data = {own, std::span<const std::byte>(own->data(), own->size())};
    return w;
  }
  Weight encode(const Weight& w, Dtype dtype) {
    return encode_weight(rt_, w, dtype, row_weights(nullptr, "w", Role::map));
  }

  struct State {
    std::vector<float> latent, mean, square;
    explicit State(const Weight& w)
        : latent(static_cast<size_t>(w.rows * w.cols)),
          mean(latent.size()),
          square(latent.size() / kRoundingGroup) {}
    LatentCodes view() { return {latent, mean, square}; }
  };

  ThreadPool pool_{2};
  Runtime rt_{select_kernels(), pool_};
};

TEST_F(LearnedRoundingTest, OnlyFormatsOfFewBitsLearn) {
  for (const DtypeInfo& d : all_dtypes())
    EXPECT_EQ(learns_rounding(d.dtype),
              std::find(std::begin(kLearned), std::end(kLearned), d.dtype) != std::end(kLearned))
        << d.name;
}

TEST_F(LearnedRoundingTest, StartsFromTheCodesThatAreThere) {
  const Weight original = random_weight(5);
  for (Dtype dtype : kLearned) {
    const Weight cut = encode(original, dtype);
    State state(cut);
    start_latent(rt_, original, cut, state.view());
    std::vector<std::byte> bytes(cut.data.bytes.begin(), cut.data.bytes.end());
    write_latent(rt_, cut, state.latent, bytes);
    EXPECT_EQ(std::memcmp(bytes.data(), cut.data.bytes.data(), bytes.size()), 0) << name(dtype);
    // And not all in the middle of their levels: the original's values are there.
    EXPECT_GT(std::count_if(state.latent.begin(), state.latent.end(),
                            [](float x) { return std::fabs(x - std::nearbyint(x)) > 0.1f; }),
              std::ssize(state.latent) / 4)
        << name(dtype);
  }
}

// Loss sum (w - target)^2 / 2: the gradient is w - target, so decoded values come nearer.
TEST_F(LearnedRoundingTest, StepsGoDownTheGradient) {
  const Weight original = random_weight(3);
  for (Dtype dtype : kLearned) {
    Weight cut = encode(original, dtype);
    auto own = std::make_shared<AlignedBuffer<std::byte>>(static_cast<size_t>(cut.bytes()));
    std::memcpy(own->data(), cut.data.bytes.data(), own->size());
    cut.data = {own, std::span<const std::byte>(own->data(), own->size())};
    const auto n = static_cast<size_t>(cut.rows * cut.cols);
    auto decoded = [&] {
      std::vector<float> values(n);
      for (int64_t r = 0; r < cut.rows; ++r)
        rt_.kernels.decode_row(dtype, cut.row(r), values.data() + r * cut.cols, cut.cols);
      return values;
    };
    // The target turns every other weight of the second row round.
    const std::vector<float> before = decoded();
    std::vector<float> target = before;
    for (int64_t i = cut.cols; i < 2 * cut.cols; ++i)
      if (i % 2) target[static_cast<size_t>(i)] *= -1;
    auto loss = [&](const std::vector<float>& values) {
      double sum = 0;
      for (size_t i = 0; i < n; ++i) sum += std::pow(double(values[i]) - double(target[i]), 2);
      return sum;
    };
    State state(cut);
    start_latent(rt_, original, cut, state.view());
    const float b1 = 0.9f, b2 = 0.98f;
    for (int step = 0; step < 60; ++step) {
      std::vector<float> g = decoded();
      for (size_t i = 0; i < n; ++i) g[i] -= target[i];
      add_latent_gradient(cut, 0, cut.rows, 0, cut.cols, g.data(), cut.cols, b1, b2, state.view());
      move_latent(rt_, cut, 0.05f, b1, b2, 1 / (1 - std::pow(b1, float(step + 1))),
                  1 / (1 - std::pow(b2, float(step + 1))), state.view());
      write_latent(rt_, cut, state.latent, *own);
    }
    const std::vector<float> after = decoded();
    EXPECT_LT(loss(after), 0.9 * loss(before)) << name(dtype);
    // Rows without a gradient stay.
    EXPECT_TRUE(std::equal(after.begin(), after.begin() + cut.cols, before.begin()));
  }
}

class RefineCodesTest : public LearnedRoundingTest {
 protected:
  // All maps in Q2_0 where their rows fit.
  Model cut_of(const Model& model) {
    Model cut = model;
    for (LinearMap* map : linear_maps(cut))
      map->weight =
          encode_weight(rt_, map->weight, map->weight.cols % 64 ? Dtype::IQ4_NL : Dtype::Q2_0,
                        row_weights(nullptr, map->name, Role::map));
    return cut;
  }
  std::vector<std::vector<int32_t>> windows(const Model& model, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<std::vector<int32_t>> all(8);
    for (auto& w : all)
      for (int i = 0; i < 32; ++i)
        w.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(model.n_vocab)));
    return all;
  }
  double loss(const Model& model, const Model& cut) {
    double sum = 0;
    for (const auto& w : windows(model, 9)) sum += kl_slope(rt_, model, cut, w).loss;
    return sum;
  }
};

TEST_F(RefineCodesTest, LowersTheLossMoreThanScalesAlone) {
  const Model model = open_tiny("tiny_qwen3");
  const Model cut = cut_of(model);
  RefineSettings settings;
  settings.steps = 60;
  settings.step_tokens = 256;
  settings.rounding_step = 0;
  const Refined scales = refine(rt_, model, cut, windows(model, 1), settings);
  EXPECT_EQ(scales.n_codes, 0);
  settings.rounding_step = 0.01;
  const Refined codes = refine(rt_, model, cut, windows(model, 1), settings);
  EXPECT_GT(codes.n_codes, 0);
  EXPECT_LT(loss(model, codes.model), 0.95 * loss(model, scales.model));
  settings.latent_bytes = 0;
  EXPECT_EQ(refine(rt_, model, cut, windows(model, 1), settings).n_codes, 0);
}

TEST_F(RefineCodesTest, InterruptedItGoesOnAndEndsAlike) {
  const Model model = open_tiny("tiny_llama");
  const Model cut = cut_of(model);
  const auto state = std::filesystem::temp_directory_path() /
                     ("learned_rounding_test." + std::to_string(getpid()));
  RefineSettings settings;
  settings.steps = 9;
  settings.rounding_step = 0.05;
  auto bytes = [&](const Refined& refined) {
    std::string all;
    for (const LinearMap* map : linear_maps(refined.model))
      all.append(reinterpret_cast<const char*>(map->weight.data.bytes.data()),
                 static_cast<size_t>(map->weight.bytes()));
    return all;
  };
  const std::string undisturbed = bytes(refine(rt_, model, cut, windows(model, 1), settings));
  settings.checkpoint = state;
  settings.checkpoint_every = 2;
  settings.after_step = [](int64_t done, double) {
    if (done == 5) throw_error("stopped");
  };
  EXPECT_THROW(refine(rt_, model, cut, windows(model, 1), settings), Error);
  int64_t steps = 0;
  settings.after_step = [&](int64_t, double) { ++steps; };
  ThreadPool other(3);
  const Runtime rt{select_kernels(), other};
  EXPECT_EQ(bytes(refine(rt, model, cut, windows(model, 1), settings)), undisturbed);
  EXPECT_EQ(steps, 5);
  std::filesystem::remove(state);
}

}  // namespace
}  // namespace mt
