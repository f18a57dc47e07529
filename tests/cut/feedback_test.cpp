#include "cut/feedback.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "base/error.h"
#include "cut/cut.h"
#include "dtype/codes.h"
#include "dtype/lattice_codes.h"
#include "measure/eval.h"
#include "measure/self_text.h"
#include "run/tiny.h"

namespace mt {
namespace {

// Inputs whose channels move together, as those of a transformer do.
MatrixBuffer correlated(int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  constexpr int64_t kCauses = 12;
  MatrixBuffer causes(kCauses, cols), x(rows, cols);
  for (int64_t i = 0; i < kCauses * cols; ++i) causes.data()[i] = normal(random);
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t i = 0; i < cols; ++i) x.row(t)[i] = 0.3f * normal(random);
    for (int64_t c = 0; c < kCauses; ++c) {
      const float strength = normal(random);
      for (int64_t i = 0; i < cols; ++i) x.row(t)[i] += strength * causes.row(c)[i];
    }
  }
  return x;
}

Weight random_weight(int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.05f);
  auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(rows * cols));
  for (float& v : *values) v = normal(random);
  return {rows, cols, Dtype::F32, {values, std::as_bytes(std::span(*values))}};
}

// Mean squared error of the outputs on inputs that rounding never saw.
double output_error(const Weight& a, const Weight& b, ConstMatrix x) {
  std::vector<float> p(static_cast<size_t>(a.cols)), q(p);
  double sum = 0;
  for (int64_t r = 0; r < a.rows; ++r) {
    decode_row(a.dtype, a.row(r), p.data(), a.cols);
    decode_row(b.dtype, b.row(r), q.data(), a.cols);
    for (int64_t t = 0; t < x.rows; ++t) {
      double e = 0;
      for (int64_t i = 0; i < a.cols; ++i)
        e += double(x.row(t)[i]) * (double(p[size_t(i)]) - double(q[size_t(i)]));
      sum += e * e;
    }
  }
  return sum / double(a.rows * x.rows);
}

TEST(Feedback, TheFactorIsThatOfTheMoments) {
  ThreadPool pool(2);
  const Runtime rt{select_kernels(), pool};
  constexpr int64_t kCols = 160;
  const MatrixBuffer x = correlated(900, kCols, 1);
  SecondMoment moment(kCols);
  moment.add(rt, x.view().slice_rows(0, 500));
  moment.add(rt, x.view().slice_rows(500, 900));
  EXPECT_EQ(moment.n_tokens(), 900);
  double direct = 0;
  for (int64_t t = 0; t < 900; ++t) direct += double(x.row(t)[7]) * double(x.row(t)[130]);
  EXPECT_NEAR(moment.at(7, 130), direct, 1e-4 * std::fabs(direct) + 1e-2);
  EXPECT_EQ(moment.at(7, 130), moment.at(130, 7));

  const Curvature c = Curvature::of(rt, moment, "map");
  for (int64_t i = 0; i < kCols; i += 13)
    for (int64_t j = 0; j <= i; j += 7) {
      double product = 0;
      for (int64_t k = 0; k <= j; ++k)
        product += double(c.unit.row(i)[k]) * double(c.d[size_t(k)]) * double(c.unit.row(j)[k]);
      EXPECT_NEAR(product, c.h.row(i)[j], 2e-4) << i << " " << j;
      EXPECT_EQ(c.h.row(i)[j], c.h.row(j)[i]);
    }
}

TEST(Feedback, LosesLessOnInputsItNeverSaw) {
  ThreadPool one(1), three(3);
  const Runtime rt{select_kernels(), one}, team{select_kernels(), three};
  constexpr int64_t kCols = 512, kRows = 40;
  const Weight w = random_weight(kRows, kCols, 3);
  const MatrixBuffer x = correlated(3000, kCols, 2);
  SecondMoment moment(kCols);
  moment.add(rt, x.view().slice_rows(0, 2800));
  const Curvature c = Curvature::of(rt, moment, "map");
  const ConstMatrix unseen = x.view().slice_rows(2800, 3000);
  const RowWeights diagonal = [&](int64_t, std::span<float> v) {
    for (size_t i = 0; i < v.size(); ++i) v[i] = c.h.row(static_cast<int64_t>(i))[i];
  };
  int formats = 0;
  for (const DtypeInfo& f : all_dtypes()) {
    if (!f.encodes || (!levels_of(f.dtype) && !lattice_subs(f.dtype))) continue;
    SCOPED_TRACE(f.name);
    ++formats;
    FeedbackStats stats;
    const Weight plain = encode_weight(rt, w, f.dtype, diagonal);
    const Weight fed = encode_with_feedback(rt, w, f.dtype, c, diagonal, &stats);
    EXPECT_LT(output_error(w, fed, unseen), 0.8 * output_error(w, plain, unseen));
    EXPECT_LT(stats.best, stats.plain);
    // The form that was lowered is that of the bytes that came out.
    std::vector<float> p(kCols), q(kCols);
    double form = 0;
    for (int64_t r = 0; r < kRows; ++r) {
      decode_row(w.dtype, w.row(r), p.data(), kCols);
      decode_row(fed.dtype, fed.row(r), q.data(), kCols);
      for (int64_t i = 0; i < kCols; ++i)
        for (int64_t j = 0; j < kCols; ++j)
          form += double(p[size_t(i)] - q[size_t(i)]) * double(c.h.row(i)[j]) *
                  double(p[size_t(j)] - q[size_t(j)]);
    }
    EXPECT_NEAR(form, stats.best, 1e-2 * stats.best + 1e-6);
    const Weight again = encode_with_feedback(team, w, f.dtype, c, diagonal);
    EXPECT_TRUE(std::ranges::equal(fed.data.bytes, again.data.bytes));
  }
  EXPECT_EQ(formats, 21);
}

TEST(Feedback, AWeightThatIsNotFiniteIsZeroAndSpoilsNoOther) {
  ThreadPool pool(2);
  const Runtime rt{select_kernels(), pool};
  constexpr int64_t kCols = 256;
  SecondMoment moment(kCols);
  moment.add(rt, correlated(600, kCols, 4));
  const Curvature c = Curvature::of(rt, moment, "map");
  const RowWeights even = [](int64_t, std::span<float> v) { std::ranges::fill(v, 1.0f); };
  const Weight source = random_weight(3, kCols, 5);
  auto with = [&](float infinite, float nan) {
    auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(3 * kCols));
    std::memcpy(values->data(), source.data.bytes.data(), source.data.bytes.size());
    (*values)[100] = infinite;
    (*values)[kCols + 7] = nan;
    return Weight{3, kCols, Dtype::F32, {values, std::as_bytes(std::span(*values))}};
  };
  for (Dtype t : {Dtype::Q4_0, Dtype::Q4_K, Dtype::IQ4_NL}) {
    const Weight zeros = encode_with_feedback(rt, with(0, 0), t, c, even);
    const Weight broken = encode_with_feedback(rt, with(-INFINITY, NAN), t, c, even);
    EXPECT_TRUE(std::ranges::equal(zeros.data.bytes, broken.data.bytes)) << name(t);
  }
}

// Layer by layer a model is what it is at once, where nothing is rounded: kept tensors stay, and
// every tensor that a plan changes is changed, however inputs are gathered.
TEST(Feedback, CutsTheLayersOfAModel) {
  ThreadPool one(1), three(3);
  const Runtime rt{select_kernels(), one}, team{select_kernels(), three};
  for (const auto& name : kTinyModels) {
    SCOPED_TRACE(name);
    const Model model = open_tiny(name);
    const auto tokenizer = Tokenizer::open(*model.file);
    const auto windows = sample_self_text(rt, model, *tokenizer, {.seed = 3, .n_tokens = 48}, 0, 8);
    Plan plan;
    for (const LinearMap* map : linear_maps(model))
      plan.decisions.push_back(
          {map->name,
           Option{.dtype = map->name.ends_with("attn_v.weight") ? map->weight.dtype : Dtype::Q4_0,
                  .keep = map->name.ends_with("attn_v.weight")},
           {},
           {}});
    const WeightsOf even = [](const std::string& tensor) {
      return row_weights(nullptr, tensor, Role::map);
    };
    const Model plain = cut_model(rt, model, plan, even);
    for (const Feedback how : {Feedback::independent, Feedback::sequential}) {
      const Model fed = cut_model(rt, model, plan, even, how, windows);
      const Model again = cut_model(team, model, plan, even, how, windows);
      const auto maps = linear_maps(fed), same = linear_maps(again), before = linear_maps(plain);
      int changed = 0;
      for (size_t i = 0; i < maps.size(); ++i) {
        EXPECT_EQ(maps[i]->weight.dtype, before[i]->weight.dtype) << maps[i]->name;
        EXPECT_TRUE(std::ranges::equal(maps[i]->weight.data.bytes, same[i]->weight.data.bytes))
            << maps[i]->name;
        changed += !std::ranges::equal(maps[i]->weight.data.bytes, before[i]->weight.data.bytes);
      }
      EXPECT_GT(changed, 5);
    }
  }
}

TEST(Feedback, RowsTooWideForTheMachineAreRefused) {
  ThreadPool pool(1);
  const Runtime rt{select_kernels(), pool};
  Model model = open_tiny("tiny_llama");
  for (LinearMap* map : linear_maps(model))
    if (map->name == "blk.0.ffn_down.weight") map->weight.cols = int64_t{1} << 30;
  Plan plan;
  for (const LinearMap* map : linear_maps(model))
    plan.decisions.push_back({map->name, Option{.dtype = Dtype::Q8_0}, {}, {}});
  const WeightsOf even = [](const std::string& tensor) {
    return row_weights(nullptr, tensor, Role::map);
  };
  try {
    cut_model(rt, model, plan, even, Feedback::independent, {{1, 2, 3}});
    FAIL() << "expected an error";
  } catch (const Error& e) {
    const std::string said = e.what();
    EXPECT_NE(said.find("blk.0.ffn_down.weight"), std::string::npos) << said;
    EXPECT_NE(said.find("1073741824 columns"), std::string::npos) << said;
  }
}

}  // namespace
}  // namespace mt
