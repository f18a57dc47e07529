#include "cut/learned_scales.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "base/error.h"
#include "cut/cut.h"
#include "cut/encode.h"
#include "cut/field_gradient.h"
#include "cut/refine.h"
#include "cut/whole_gradient.h"
#include "dtype/scale_fields.h"
#include "run/tiny.h"
#include "support/folder.h"
#include "support/made_model.h"

namespace mt {
namespace {

using Windows = std::vector<std::vector<int32_t>>;

constexpr Dtype kLearned[] = {Dtype::Q2_K, Dtype::Q3_K, Dtype::Q4_K,
                              Dtype::Q5_K, Dtype::Q6_K, Dtype::IQ4_XS};

class LearnedScalesTest : public testing::Test {
 protected:
  // Rows of 256 everywhere, the embedding as head.
  Model made(int64_t d_ff = 256) {
    test::make_model(folder_ / "made.gguf", {.d_model = 256,
                                             .d_ff = d_ff,
                                             .head = test::MadeModel::Head::none,
                                             .head_dtype = Dtype::F32});
    return open_model(folder_ / "made.gguf");
  }
  // The maps in these formats in turn.
  Model cut_to(const Model& model, std::vector<Dtype> formats) {
    Model cut = model;
    size_t next = 0;
    for (LinearMap* map : linear_maps(cut))
      map->weight = encode_weight(rt_, map->weight, formats[next++ % formats.size()],
                                  row_weights(nullptr, map->name, Role::map));
    return cut;
  }
  static Windows random_windows(int n, int length, uint32_t seed) {
    std::mt19937 random(seed);
    Windows windows(static_cast<size_t>(n));
    for (auto& w : windows)
      for (int i = 0; i < length; ++i) w.push_back(static_cast<int32_t>(random() % 64));
    return windows;
  }
  double loss(const Model& model, const Model& cut, const Windows& windows) {
    double sum = 0;
    for (const auto& w : windows) sum += kl_slope(rt_, model, cut, w).loss;
    return sum / double(windows.size());
  }
  static Weight copy_of(const Weight& w) {
    auto own = std::make_shared<AlignedBuffer<std::byte>>(static_cast<size_t>(w.bytes()));
    std::memcpy(own->data(), w.data.bytes.data(), own->size());
    Weight copy = w;
    copy.data = {own, std::span<const std::byte>(own->data(), own->size())};
    return copy;
  }
  // Of a made model, bytes of its own.
  Weight embedding_as(Dtype dtype) {
    return copy_of(
        encode_weight(rt_, made().embedding.weight, dtype, row_weights(nullptr, "w", Role::map)));
  }
  static std::byte* block_of(const Weight& w, int64_t block) {
    return const_cast<std::byte*>(w.data.bytes.data()) + block * info(w.dtype).block_bytes;
  }
  static int64_t n_blocks(const Weight& w) { return w.rows * w.cols / info(w.dtype).block_length; }
  static std::vector<int> numbers_of(const Weight& w) {
    const int64_t n = n_sub_scales(w) / n_blocks(w);
    std::vector<int> all;
    for (int64_t b = 0; b < n_blocks(w); ++b) {
      int scales[kMostSubScales];
      read_sub_scales(w.dtype, block_of(w, b), scales);
      all.insert(all.end(), scales, scales + n);
    }
    return all;
  }
  static std::string bytes_of(const Model& model) {
    std::string all;
    for (const LinearMap* map : linear_maps(model))
      all.append(reinterpret_cast<const char*>(map->weight.data.bytes.data()),
                 static_cast<size_t>(map->weight.bytes()));
    return all;
  }
  static RefineSettings quick(int64_t steps) {
    RefineSettings s;
    s.steps = steps;
    s.step_tokens = 0;  // one window
    s.warm_up = 2;
    s.rounding_step = 0;
    s.sub_scale_step = 0.05;
    s.sub_scale_formats = {std::begin(kLearned), std::end(kLearned)};
    return s;
  }

  struct State {
    std::vector<float> latent, mean, square;
    explicit State(const Weight& w)
        : latent(static_cast<size_t>(n_sub_scales(w))),
          mean(latent.size()),
          square(latent.size()) {}
    LatentScales view() { return {latent, mean, square}; }
  };

  test::TemporaryFolder folder_;
  ThreadPool pool_{2};
  Runtime rt_{select_kernels(), pool_};
};

// dW = dy^T x in f64; what a number adds to the weights by difference of two decodings.
TEST_F(LearnedScalesTest, GradientsOfEveryFormatEqualTheWholeMatrix) {
  const test::WholeGradient product(70, 53, 512);
  const int64_t out = product.out, in = product.in;
  const MatrixBuffer &x = product.x, &dy = product.dy;
  const std::vector<double>& dw = product.dw;
  for (Dtype dtype : kLearned) {
    Weight w{.rows = out, .cols = in, .dtype = dtype, .data = {}};
    const std::vector<std::byte> bytes = product.encoded(dtype);
    w.data.bytes = bytes;
    std::vector<float> fields(static_cast<size_t>(n_fields(w)));
    const auto count = static_cast<size_t>(n_sub_scales(w) / n_blocks(w));
    std::vector<float> gradient(static_cast<size_t>(n_sub_scales(w))), by_rows = gradient;
    add_field_gradient(
        rt_, Path::exact, w, x, dy, fields, {}, [&](int64_t block, std::span<const float> g) {
          ASSERT_EQ(g.size(), count);
          std::copy(g.begin(), g.end(), gradient.begin() + std::ptrdiff_t(size_t(block) * count));
        });
    // The same from rows that are read one by one, some of them twice.
    std::vector<int32_t> rows;
    MatrixBuffer d(out + 1, in);
    for (int64_t o = 0; o <= out; ++o) {
      rows.push_back(static_cast<int32_t>(o % out));
      for (int64_t i = 0; i < in; ++i) {
        const auto whole = static_cast<float>(dw[static_cast<size_t>(o % out * in + i)]);
        d.row(o)[i] = o % out == 0 ? 0.5f * whole : whole;
      }
    }
    std::vector<float> row_fields(fields.size());
    add_row_field_gradient(rt_, w, rows, d.view(), row_fields,
                           [&](int64_t block, std::span<const float> g) {
                             for (size_t i = 0; i < count; ++i)
                               by_rows[size_t(block) * count + i] += g[i];
                           });
    const SubScales subs = sub_scales(dtype);
    for (int64_t b = 0; b < n_blocks(w); ++b)
      for (size_t i = 0; i < count; ++i) {
        int scales[kMostSubScales];
        read_sub_scales(dtype, block_of(w, b), scales);
        const int was = scales[i];
        std::vector<float> high(256), low(256);
        std::vector<std::byte> block(block_of(w, b), block_of(w, b) + info(dtype).block_bytes);
        scales[i] = std::min(was + 1, subs.high);
        write_sub_scales(dtype, scales, block.data());
        decode_row(dtype, block.data(), high.data(), 256);
        const double step = scales[i] - std::max(was - 1, subs.low);
        scales[i] = std::max(was - 1, subs.low);
        write_sub_scales(dtype, scales, block.data());
        decode_row(dtype, block.data(), low.data(), 256);
        double expected = 0, magnitude = 0;
        for (size_t j = 0; j < 256; ++j) {
          const double term =
              dw[static_cast<size_t>(b) * 256 + j] * double(high[j] - low[j]) / step;
          expected += term;
          magnitude += std::fabs(term);
        }
        const size_t at = size_t(b) * count + i;
        ASSERT_NEAR(double(gradient[at]), expected, 1e-4 * magnitude + 1e-5)
            << name(dtype) << " block " << b << " scale " << i;
        ASSERT_NEAR(double(by_rows[at]), expected, 1e-4 * magnitude + 1e-5)
            << name(dtype) << " block " << b << " scale " << i << ", by rows";
      }
    for (size_t i = 0; i < fields.size(); ++i)
      ASSERT_NEAR(row_fields[i], fields[i], 1e-3 * std::fabs(fields[i]) + 1e-2) << name(dtype);
  }
}

// Through the whole model, embedding and head included; numbers move by one, the least they can.
TEST_F(LearnedScalesTest, GradientsAgreeWithCentralDifferencesOfTheLoss) {
  const Model model = made();
  for (size_t first = 0; first < 2; ++first) {
    std::vector<Dtype> formats(std::begin(kLearned), std::end(kLearned));
    std::rotate(formats.begin(), formats.begin() + std::ptrdiff_t(first), formats.end());
    Model cut = cut_to(model, formats);
    const Windows windows = random_windows(1, 20, 5);
    const KlSlope slope = kl_slope(rt_, model, cut, windows[0]);
    EXPECT_EQ(slope.sub_scales.size(), linear_maps(cut).size());
    int checked = 0;
    for (LinearMap* map : linear_maps(cut)) {
      const auto& g = slope.sub_scales.at(map->name);
      const Weight before = map->weight;
      const SubScales subs = sub_scales(before.dtype);
      ASSERT_EQ(std::ssize(g), n_sub_scales(before));
      const size_t count = g.size() / size_t(n_blocks(before));
      size_t top = 0;
      for (size_t i = 0; i < g.size(); ++i)
        if (std::fabs(g[i]) > std::fabs(g[top])) top = i;
      for (size_t i : {top, g.size() / 3}) {
        auto with = [&](int by) {
          map->weight = copy_of(before);
          int scales[kMostSubScales];
          std::byte* block = block_of(map->weight, int64_t(i / count));
          read_sub_scales(before.dtype, block, scales);
          scales[i % count] += by;
          write_sub_scales(before.dtype, scales, block);
          const double value = loss(model, cut, windows);
          map->weight = before;
          return value;
        };
        const int was = numbers_of(before)[i];
        if (was == subs.low || was == subs.high) continue;
        ++checked;
        EXPECT_NEAR(double(g[i]), (with(1) - with(-1)) / 2, 0.05 * std::fabs(double(g[i])) + 2e-7)
            << map->name << " " << name(before.dtype) << " scale " << i;
      }
    }
    EXPECT_GT(checked, 9);
  }
}

TEST_F(LearnedScalesTest, StartsFromTheNumbersThatAreThere) {
  const Model model = made();
  for (const DtypeInfo& f : all_dtypes()) {
    if (!f.encodes) continue;
    const Weight cut =
        encode_weight(rt_, model.embedding.weight, f.dtype, row_weights(nullptr, "w", Role::map));
    const bool learned =
        std::find(std::begin(kLearned), std::end(kLearned), f.dtype) != std::end(kLearned);
    EXPECT_EQ(n_sub_scales(cut) > 0, learned) << f.name;
    if (!learned) continue;
    State state(cut);
    start_sub_scales(cut, state.view());
    const Weight copy = copy_of(cut);
    write_sub_scales(rt_, copy, state.latent,
                     {block_of(copy, 0), static_cast<size_t>(copy.bytes())});
    EXPECT_EQ(std::memcmp(block_of(copy, 0), block_of(cut, 0), size_t(cut.bytes())), 0) << f.name;
  }
}

// A gradient of +1 everywhere, then -1: numbers go to their format's end and no further.
TEST_F(LearnedScalesTest, NumbersStayWithinTheirFormat) {
  for (Dtype dtype : kLearned) {
    const Weight w = embedding_as(dtype);
    const SubScales subs = sub_scales(dtype);
    State state(w);
    start_sub_scales(w, state.view());
    const std::vector<float> ones(static_cast<size_t>(n_sub_scales(w) / n_blocks(w)), 1.0f);
    for (float sign : {1.0f, -1.0f}) {
      std::vector<float> g = ones;
      for (float& v : g) v *= sign;
      for (int step = 0; step < 12; ++step) {
        for (int64_t b = 0; b < n_blocks(w); ++b)
          add_sub_scale_gradient(w, b, g, 0, 0, state.view());
        move_sub_scales(rt_, w, 20, 0, 0, 1, 1, state.view());
      }
      write_sub_scales(rt_, w, state.latent, {block_of(w, 0), static_cast<size_t>(w.bytes())});
      for (int number : numbers_of(w)) ASSERT_EQ(number, sign > 0 ? subs.low : subs.high);
    }
  }
}

// As a damaged checkpoint may bring them: no number spills into its neighbours' bits.
TEST_F(LearnedScalesTest, LatentsBeyondTheFormatAreWrittenAsItsEnds) {
  for (Dtype dtype : kLearned) {
    const Weight w = embedding_as(dtype);
    const SubScales subs = sub_scales(dtype);
    State state(w);
    start_sub_scales(w, state.view());
    std::vector<int> expected = numbers_of(w);
    const float far[] = {1e9f, -1e9f, float(subs.high) + 1, float(subs.low) - 1, NAN};
    for (size_t i = 0; i < expected.size(); i += 3) {
      const float value = far[i / 3 % 5];
      state.latent[i] = value;
      expected[i] = value < 0 ? subs.low : subs.high;
    }
    write_sub_scales(rt_, w, state.latent, {block_of(w, 0), static_cast<size_t>(w.bytes())});
    EXPECT_EQ(numbers_of(w), expected) << name(dtype);
  }
}

TEST_F(LearnedScalesTest, NumbersOfEveryFormatMove) {
  const Model model = made();
  const Windows windows = random_windows(4, 32, 1);
  for (Dtype dtype : kLearned) {
    const Model cut = cut_to(model, {dtype});
    RefineSettings settings = quick(6);
    settings.sub_scale_step = 0.1;
    const Refined refined = refine(rt_, model, cut, windows, settings);
    int64_t moved = 0, all = 0;
    for (size_t m = 0; m < linear_maps(cut).size(); ++m) {
      const auto before = numbers_of(linear_maps(std::as_const(cut))[m]->weight);
      const auto after = numbers_of(linear_maps(refined.model)[m]->weight);
      for (size_t i = 0; i < before.size(); ++i) moved += before[i] != after[i];
      all += std::ssize(before);
    }
    EXPECT_GT(moved, 0) << name(dtype);
    EXPECT_LT(moved, all) << name(dtype);
  }
}

TEST_F(LearnedScalesTest, LowersTheLossMoreThanFieldsAlone) {
  const Model model = made(), cut = cut_to(model, {Dtype::Q3_K});
  const Windows seen = random_windows(16, 48, 1), held_out = random_windows(6, 48, 2);
  RefineSettings settings = quick(48);
  settings.sub_scale_step = 0;
  const Refined fields = refine(rt_, model, cut, seen, settings);
  settings.sub_scale_step = 1.5e-2;
  const Refined scales = refine(rt_, model, cut, seen, settings);
  const double without = loss(model, fields.model, held_out);
  EXPECT_LT(without, loss(model, cut, held_out));
  EXPECT_LT(loss(model, scales.model, held_out), 0.95 * without);
}

// Codes where there is room, else scales of sub-blocks, as the defaults have it.
TEST_F(LearnedScalesTest, CodesComeBeforeThemWhereThereIsRoom) {
  const Model model = made();
  const Model cut = cut_to(model, {Dtype::Q3_K, Dtype::Q4_K});
  RefineSettings settings;
  settings.steps = 1;
  const Windows windows = random_windows(1, 16, 1);
  int64_t weights = 0, scales = 0, fields = 0, largest = 0;
  for (const LinearMap* map : linear_maps(std::as_const(cut))) {
    fields += n_fields(map->weight);
    if (map->weight.dtype != Dtype::Q3_K) continue;
    weights += map->weight.rows * map->weight.cols;
    scales += n_sub_scales(map->weight);
    largest = std::max(largest, map->weight.rows * map->weight.cols);
  }
  auto free = [&](int64_t bytes) {
    settings.latent_bytes = bytes;
    const Refined r = refine(rt_, model, cut, windows, settings);
    return std::pair(r.n_codes, r.n_scales - fields);
  };
  EXPECT_EQ(free(9 * weights), std::pair(weights, int64_t{0}));
  EXPECT_EQ(free(12 * scales), std::pair(int64_t{0}, scales));
  // 8.25 bytes for codes in place of 0.75 for scales, twice.
  EXPECT_EQ(free(12 * scales + 15 * largest), std::pair(2 * largest, scales - largest / 8));
  EXPECT_EQ(free(0), std::pair(int64_t{0}, int64_t{0}));
}

// Numbers, fields, codes and norms: the file holds what the refined model computes with.
TEST_F(LearnedScalesTest, TheFileWrittenComputesTheSame) {
  const Model model = made();
  const Model cut = cut_to(model, {std::begin(kLearned), std::end(kLearned)});
  RefineSettings settings = quick(6);
  settings.rounding_step = 0.05;
  settings.sub_scale_step = 0.1;
  const Windows windows = random_windows(4, 32, 1);
  const Refined refined = refine(rt_, model, cut, windows, settings);
  EXPECT_TRUE(bytes_of(refined.model) != bytes_of(cut));
  const Output output = output_of(model, refined.model, {});
  write_gguf(folder_ / "refined.gguf", output.metadata, output.tensors);
  const Model read = open_model(folder_ / "refined.gguf");
  const MatrixBuffer a = all_logits(rt_, refined.model, windows[0]);
  const MatrixBuffer b = all_logits(rt_, read, windows[0]);
  EXPECT_EQ(std::memcmp(a.data(), b.data(), size_t(a.rows() * a.cols()) * sizeof(float)), 0);
}

TEST_F(LearnedScalesTest, InterruptedItGoesOnAndEndsAlikeInEveryTable) {
  const Model model = made();
  const Model cut = cut_to(model, {std::begin(kLearned), std::end(kLearned)});
  const Windows windows = random_windows(3, 24, 1);
  RefineSettings settings = quick(7);
  settings.rounding_step = 0.05;
  const std::string undisturbed = bytes_of(refine(rt_, model, cut, windows, settings).model);
  settings.sub_scale_step = 0;
  EXPECT_TRUE(undisturbed != bytes_of(refine(rt_, model, cut, windows, settings).model));
  settings.sub_scale_step = quick(7).sub_scale_step;
  settings.checkpoint = folder_ / "state";
  settings.checkpoint_every = 2;
  ThreadPool three(3);
  for (const Kernels* table : available_kernels()) {
    std::filesystem::remove(settings.checkpoint);
    settings.after_step = [](int64_t done, double) {
      if (done == 5) throw_error("stopped");
    };
    EXPECT_THROW(refine({*table, three}, model, cut, windows, settings), Error);
    int64_t steps = 0;
    settings.after_step = [&](int64_t, double) { ++steps; };
    EXPECT_TRUE(bytes_of(refine(rt_, model, cut, windows, settings).model) == undisturbed)
        << table->name;
    EXPECT_EQ(steps, 3);
  }
  // The state of another step size is not taken.
  settings.sub_scale_step /= 2;
  int64_t steps = 0;
  settings.after_step = [&](int64_t, double) { ++steps; };
  refine(rt_, model, cut, windows, settings);
  EXPECT_EQ(steps, 7);
}

}  // namespace
}  // namespace mt
