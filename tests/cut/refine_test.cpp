#include "cut/refine.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <random>

#include "base/error.h"
#include "cut/cut.h"
#include "cut/encode.h"
#include "cut/field_gradient.h"
#include "cut/tiny_cuts.h"
#include "cut/whole_gradient.h"
#include "dtype/scale_fields.h"

namespace mt {
namespace {

using Windows = std::vector<std::vector<int32_t>>;

class RefineTest : public testing::Test {
 protected:
  ThreadPool pool_{2};
  Runtime rt_{select_kernels(), pool_};
};

// dW = dy^T x in f64, the basis of a field by difference of two decodings: no code shared.
TEST_F(RefineTest, FieldGradientsOfEveryFormatEqualTheWholeMatrix) {
  const test::WholeGradient product(300, 37, 512);  // odd panels, more tokens than one pass sums
  const int64_t out = product.out, in = product.in;
  const MatrixBuffer &x = product.x, &dy = product.dy;
  const std::vector<double>& dw = product.dw;
  for (const DtypeInfo& f : all_dtypes()) {
    const auto offsets = scale_offsets(f.dtype);
    if (offsets.empty() || !f.encodes) continue;
    Weight w{.rows = out, .cols = in, .dtype = f.dtype, .data = {}};
    std::vector<std::byte> bytes = product.encoded(f.dtype);
    const int64_t length = row_bytes(f.dtype, in);
    w.data.bytes = bytes;
    std::vector<float> gradient(static_cast<size_t>(n_fields(w)), 1.0f);
    add_field_gradient(rt_, Path::exact, w, x, dy, gradient);
    size_t at = 0;
    for (int64_t o = 0; o < out; ++o)
      for (int64_t b = 0; b < in / f.block_length; ++b)
        for (int offset : offsets) {
          std::byte* block = bytes.data() + o * length + b * f.block_bytes;
          std::vector<std::byte> high(block, block + f.block_bytes), low = high;
          const uint16_t two = float_to_half(2), one = float_to_half(1);
          std::memcpy(&high[static_cast<size_t>(offset)], &two, 2);
          std::memcpy(&low[static_cast<size_t>(offset)], &one, 2);
          std::vector<float> h(static_cast<size_t>(f.block_length)), l = h;
          decode_row(f.dtype, high.data(), h.data(), f.block_length);
          decode_row(f.dtype, low.data(), l.data(), f.block_length);
          double expected = 1, magnitude = 0;
          for (int64_t i = 0; i < f.block_length; ++i) {
            const double term = dw[static_cast<size_t>(o * in + b * f.block_length + i)] *
                                double(h[static_cast<size_t>(i)] - l[static_cast<size_t>(i)]);
            expected += term;
            magnitude += std::fabs(term);
          }
          ASSERT_NEAR(double(gradient[at++]), expected, 1e-4 * magnitude + 1e-4)
              << f.name << " row " << o << " block " << b;
        }
    EXPECT_EQ(at, gradient.size());
  }
}

TEST_F(RefineTest, GradientsOfFieldsAndNormsAgreeWithCentralDifferences) {
  for (const auto& name : kTinyModels) {
    const Model model = open_tiny(name);
    Model cut = cut_to(rt_, model,
                       {Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_1, Dtype::IQ4_NL, Dtype::Q2_0,
                        Dtype::Q8_0, Dtype::Q5_0, Dtype::Q1_0});
    const Windows windows = random_windows(model.n_vocab, 1, 24, 5);
    const KlSlope slope = kl_slope(rt_, model, cut, windows[0]);
    EXPECT_NEAR(slope.loss, kl(rt_, model, cut, windows), 1e-5) << name;
    EXPECT_EQ(slope.by_tensor.size(), linear_maps(cut).size() + norms(cut).size()) << name;
    double scale = 0;  // of a relative change
    auto check = [&](double analytic, double up, double down, double step,
                     const std::string& what) {
      const double numeric = (up - down) / step;
      EXPECT_NEAR(analytic, numeric, 0.03 * std::fabs(numeric) + 2e-5 * scale)
          << name << " " << what;
    };
    for (LinearMap* map : linear_maps(cut)) {
      const auto& g = slope.by_tensor.at(map->name);
      std::vector<float> fields(g.size());
      ASSERT_EQ(n_fields(map->weight), std::ssize(g));
      read_fields(map->weight, fields);
      for (size_t i : {heaviest_field(g, fields), g.size() / 3}) {
        const FieldDifference d =
            field_difference(rt_, *map, i, [&] { return kl(rt_, model, cut, windows); });
        if (d.step == 0) continue;
        scale = 1 / std::fabs(double(fields[i]));
        check(g[i], d.up, d.down, d.step, map->name + " field " + std::to_string(i));
      }
    }
    for (const auto& norm : norms(cut)) {
      const auto& g = slope.by_tensor.at(norm.name);
      for (size_t i : {size_t{0}, g.size() - 1}) {
        const float value = (*norm.gain)[i], h = 0.004f;
        (*norm.gain)[i] = value + h;
        const double up = kl(rt_, model, cut, windows);
        (*norm.gain)[i] = value - h;
        const double down = kl(rt_, model, cut, windows);
        (*norm.gain)[i] = value;
        scale = 1;
        check(g[i], up, down, 2 * double(h), norm.name + " gain " + std::to_string(i));
      }
    }
  }
}

TEST_F(RefineTest, LowersTheLossOnTextItHasNotSeen) {
  const std::vector<std::pair<std::string, Dtype>> cases{{"tiny_llama", Dtype::Q4_1},
                                                         {"tiny_llama", Dtype::Q2_0},
                                                         {"tiny_qwen2", Dtype::Q2_0},
                                                         {"tiny_gemma3", Dtype::Q4_1}};
  for (const auto& [name, format] : cases) {
    const Model model = open_tiny(name);
    const Windows seen = random_windows(model.n_vocab, 16, 64, 1);
    const Windows held_out = random_windows(model.n_vocab, 4, 64, 2);
    const Model cut = cut_to(rt_, model, {format, Dtype::IQ4_NL});
    const double before = kl(rt_, model, cut, held_out);
    const Refined refined = refine(rt_, model, cut, seen, quick_refinement(48));
    const double after = kl(rt_, model, refined.model, held_out);
    EXPECT_LT(after, 0.97 * before) << name << " " << mt::name(format);
    EXPECT_EQ(std::ssize(refined.losses), 48);
    EXPECT_EQ(kl(rt_, model, cut, held_out), before) << "the cut given was changed";
  }
}

TEST_F(RefineTest, ALightCutIsMovedLittle) {
  const Model model = open_tiny("tiny_llama");
  const Model cut = cut_to(rt_, model, {Dtype::Q8_0});
  const Windows seen = random_windows(model.n_vocab, 8, 24, 3);
  const Windows others = random_windows(model.n_vocab, 6, 24, 4);
  const double before = kl(rt_, model, cut, others);
  ASSERT_LT(before, 0.01);
  RefineSettings settings = quick_refinement(24);
  settings.whole_steps_from = 1;  // steps a thirtieth as long, for a loss of a thousandth
  const double little = kl(rt_, model, refine(rt_, model, cut, seen, settings).model, others);
  settings.whole_steps_from = 0;
  const double whole = kl(rt_, model, refine(rt_, model, cut, seen, settings).model, others);
  EXPECT_LT(little, 1.01 * before);
  EXPECT_LT(std::fabs(little - before), 0.3 * std::fabs(whole - before)) << before << " " << whole;
}

TEST_F(RefineTest, GivesTheSameBytesWithAnyNumberOfThreads) {
  const Model model = open_tiny("tiny_gemma3");
  const Model cut = cut_to(rt_, model, {Dtype::Q4_0, Dtype::Q4_1});
  const Windows windows = random_windows(model.n_vocab, 3, 70, 1);
  ThreadPool one(1), three(3);
  const Refined a = refine({rt_.kernels, one}, model, cut, windows, quick_refinement(5));
  const Refined b = refine({rt_.kernels, three}, model, cut, windows, quick_refinement(5));
  EXPECT_TRUE(same_weights(a.model, b.model));
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_FALSE(same_weights(a.model, cut));
}

TEST_F(RefineTest, GivesTheSameBytesInEveryTable) {
  const Model model = open_tiny("tiny_qwen2");
  const Model cut = cut_to(rt_, model, {Dtype::Q4_0, Dtype::Q4_1, Dtype::Q2_0});
  const Windows windows = random_windows(model.n_vocab, 3, 40, 1);
  const Refined expected =
      refine({reference_kernels(), pool_}, model, cut, windows, quick_refinement(3));
  for (const Kernels* table : available_kernels()) {
    const Refined got = refine({*table, pool_}, model, cut, windows, quick_refinement(3));
    EXPECT_TRUE(same_weights(expected.model, got.model)) << table->name;
    EXPECT_EQ(expected.losses, got.losses) << table->name;
  }
}

// The gradients that refinement follows, against the exact ones: small beside the noise of a
// window of text.
TEST_F(RefineTest, Bf16GradientsAreNearTheExactOnes) {
  for (const auto& name : kTinyModels) {
    const Model model = open_tiny(name);
    const Model cut = cut_to(rt_, model, {Dtype::Q4_0, Dtype::Q4_1, Dtype::IQ4_NL, Dtype::Q2_0});
    const Windows windows = random_windows(model.n_vocab, 1, 64, 5);
    const KlSlope exact = kl_slope(rt_, model, cut, windows[0]);
    const KlSlope rounded = kl_slope(rt_, model, cut, windows[0], false, Path::bf16);
    // Logits are off by 0.01 of their size (forward_test); loss and gradients come from the
    // difference of two models' logits, so their share is larger. Measured: the loss within 0.034,
    // the worst tensor of each model 0.029 to 0.073.
    EXPECT_NEAR(rounded.loss, exact.loss, 0.05 * exact.loss) << name;
    ASSERT_EQ(exact.by_tensor.size(), rounded.by_tensor.size());
    for (const auto& [tensor, e] : exact.by_tensor) {
      const auto& r = rounded.by_tensor.at(tensor);
      const double distance = relative_rms(r, e);
      EXPECT_LT(distance, 0.1) << name << " " << tensor;
      EXPECT_GT(distance, 0) << name << " " << tensor;
    }
  }
}

TEST_F(RefineTest, AStepMayReadSeveralWindows) {
  const Model model = open_tiny("tiny_llama");
  const Model cut = cut_to(rt_, model, {Dtype::Q4_0});
  const Windows windows = random_windows(model.n_vocab, 4, 24, 1);
  const Windows backwards(windows.rbegin(), windows.rend());
  RefineSettings settings = quick_refinement(1);
  auto loss = [&](int64_t tokens, const Windows& from) {
    settings.step_tokens = tokens;
    return refine(rt_, model, cut, from, settings).losses.at(0);
  };
  // All of them, in whatever order: the mean of what each has alone.
  double mean = 0;
  for (const auto& w : windows) mean += loss(24, {w}) / 4;
  EXPECT_NEAR(loss(96, windows), mean, 1e-12);
  EXPECT_NEAR(loss(96, backwards), mean, 1e-12);
  EXPECT_NEAR(loss(100000, windows), mean, 1e-12);
  EXPECT_NE(loss(95, windows), loss(96, windows));
  EXPECT_EQ(loss(47, windows), loss(0, windows));
}

TEST_F(RefineTest, InterruptedItGoesOnAndEndsAlike) {
  const Model model = open_tiny("tiny_qwen3");
  const Model cut = cut_to(rt_, model, {Dtype::Q4_0});
  const Windows windows = random_windows(model.n_vocab, 4, 24, 1);
  const auto folder =
      std::filesystem::temp_directory_path() / ("refine_test." + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  RefineSettings settings = quick_refinement(11);
  const Refined undisturbed = refine(rt_, model, cut, windows, settings);
  settings.checkpoint = folder / "state";
  settings.checkpoint_every = 3;
  settings.after_step = [](int64_t done, double) {
    if (done == 8) throw_error("stopped");
  };
  EXPECT_THROW(refine(rt_, model, cut, windows, settings), Error);
  std::vector<int64_t> steps;
  settings.after_step = [&](int64_t done, double) { steps.push_back(done); };
  const Refined resumed = refine(rt_, model, cut, windows, settings);
  EXPECT_EQ(steps, (std::vector<int64_t>{7, 8, 9, 10, 11}));
  EXPECT_TRUE(same_weights(undisturbed.model, resumed.model));
  EXPECT_EQ(undisturbed.losses, resumed.losses);
  steps.clear();  // it is done: nothing is computed again
  EXPECT_TRUE(same_weights(undisturbed.model, refine(rt_, model, cut, windows, settings).model));
  EXPECT_TRUE(steps.empty());
  // A state of other settings or a damaged one is not taken.
  settings.seed = 2;
  EXPECT_FALSE(same_weights(undisturbed.model, refine(rt_, model, cut, windows, settings).model));
  EXPECT_EQ(steps.size(), 11u);
  std::filesystem::resize_file(settings.checkpoint,
                               std::filesystem::file_size(settings.checkpoint) - 4);
  refine(rt_, model, cut, windows, settings);
  EXPECT_EQ(steps.size(), 22u);
  {
    std::fstream state(settings.checkpoint, std::ios::in | std::ios::out | std::ios::binary);
    state.seekg(-1, std::ios::end);
    const int last = state.get();
    state.seekp(-1, std::ios::end);
    state.put(static_cast<char>(last ^ 0x80));
  }
  refine(rt_, model, cut, windows, settings);
  EXPECT_EQ(steps.size(), 33u);
  std::filesystem::remove_all(folder);
}

TEST_F(RefineTest, KeptTensorsMoveOnlyWhereAsked) {
  const Model model = cut_to(rt_, open_tiny("tiny_llama"), {Dtype::Q8_0});
  Model cut = model;  // all kept but one
  cut.embedding.weight = encode_weight(rt_, model.embedding.weight, Dtype::Q4_0,
                                       row_weights(nullptr, cut.embedding.name, Role::map));
  const Windows windows = random_windows(model.n_vocab, 2, 24, 1);
  RefineSettings settings = quick_refinement(3);
  auto moved = [&](const Model& refined) {
    int n = 0;
    const auto was = linear_maps(std::as_const(cut)), is = linear_maps(refined);
    for (size_t i = 0; i < was.size(); ++i)
      n += std::memcmp(was[i]->weight.data.bytes.data(), is[i]->weight.data.bytes.data(),
                       size_t(was[i]->weight.bytes())) != 0;
    return n;
  };
  EXPECT_EQ(moved(refine(rt_, model, cut, windows, settings).model), 1);
  settings.kept = true;
  EXPECT_EQ(moved(refine(rt_, model, cut, windows, settings).model),
            std::ssize(linear_maps(model)));
}

TEST_F(RefineTest, RefinedNormsAreWritten) {
  const Model model = open_tiny("tiny_gemma3");
  const Model cut = cut_to(rt_, model, {Dtype::Q4_0});
  const Windows windows = random_windows(model.n_vocab, 2, 24, 1);
  const Refined refined = refine(rt_, model, cut, windows, quick_refinement(3));
  int n = 0;
  for (const TensorSource& t : output_of(model, refined.model, {}).tensors)
    for (const auto& norm : norms(refined.model)) {
      if (t.name != norm.name) continue;
      std::vector<std::byte> bytes;
      t.produce(
          [&](std::span<const std::byte> b) { bytes.insert(bytes.end(), b.begin(), b.end()); });
      ASSERT_EQ(bytes.size(), norm.gain->size() * sizeof(float));
      EXPECT_EQ(std::memcmp(bytes.data(), norm.gain->data(), bytes.size()), 0) << t.name;
      const Tensor* source = model.file->find_tensor(t.name);
      EXPECT_NE(std::memcmp(bytes.data(), source->data.bytes.data(), bytes.size()), 0) << t.name;
      ++n;
    }
  EXPECT_EQ(n, 6 * model.n_layers + 1);  // two sites with a norm before and after, q, k; final
}

}  // namespace
}  // namespace mt
