#include "cut/cut.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "base/error.h"
#include "run/tiny.h"
#include "support/folder.h"
#include "support/made_model.h"

namespace mt {
namespace {

using test::MadeModel;
using test::TemporaryFolder;

class Cut : public testing::Test {
 protected:
  ThreadPool pool{1};
  Runtime rt{select_kernels(), pool};
  TemporaryFolder folder;

  static RowWeights even(const std::string& tensor) {
    return row_weights(nullptr, tensor, Role::map);
  }
  Model made(const MadeModel& what) {
    test::make_model(folder / "made.gguf", what);
    return open_model(folder / "made.gguf");
  }
  // Writes what the plan makes of the model and opens it again.
  Model written(const Model& source, const Plan& plan, const Receipt& receipt = {}) {
    const Model cut = cut_model(rt, source, plan, even);
    const Output output = output_of(source, cut, receipt);
    write_gguf(folder / "cut.gguf", output.metadata, output.tensors);
    return open_model(folder / "cut.gguf");
  }
  std::string error_of(const Model& source, const Plan& plan) {
    try {
      cut_model(rt, source, plan, even);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  }
};

Plan uniform_plan(const Model& model, std::optional<Dtype> dtype) {
  Plan plan;
  for (const LinearMap* map : linear_maps(model)) {
    Option option{.dtype = dtype.value_or(map->weight.dtype), .keep = !dtype};
    plan.decisions.push_back({map->name, option, {}, {}});
  }
  return plan;
}

std::vector<float> decoded(const Weight& w) {
  std::vector<float> values(static_cast<size_t>(w.rows * w.cols));
  for (int64_t r = 0; r < w.rows; ++r)
    decode_row(w.dtype, w.row(r), values.data() + r * w.cols, w.cols);
  return values;
}

double relative_error(const Weight& now, const Weight& before) {
  const auto a = decoded(now), b = decoded(before);
  double error = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    error += std::pow(double(a[i]) - double(b[i]), 2);
    size += std::pow(double(b[i]), 2);
  }
  return std::sqrt(error / size);
}

bool same_bytes(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

TEST_F(Cut, KeepingEverythingKeepsEveryBitOfTensorsAndLogits) {
  for (const auto& name : kTinyModels) {
    SCOPED_TRACE(name);
    const Model source = open_tiny(name);
    const Model kept = written(source, uniform_plan(source, std::nullopt));
    ASSERT_EQ(kept.file->tensors.size(), source.file->tensors.size());
    for (size_t i = 0; i < source.file->tensors.size(); ++i) {
      const Tensor &was = source.file->tensors[i], &is = kept.file->tensors[i];
      EXPECT_EQ(is.name, was.name);
      EXPECT_EQ(is.shape, was.shape);
      EXPECT_EQ(is.dtype, was.dtype);
      EXPECT_TRUE(same_bytes(is.data.bytes, was.data.bytes)) << was.name;
    }
    const auto ids = read_golden<int32_t>(name + ".ids.i32");
    const MatrixBuffer was = all_logits(rt, source, ids), is = all_logits(rt, kept, ids);
    EXPECT_EQ(std::memcmp(is.data(), was.data(), sizeof(float) * was.rows() * was.cols()), 0);
  }
}

// The largest relative RMS error on bell-shaped weights: twice and more of what the format's number
// of levels allows at best, so that only a broken cut exceeds it.
double error_bound(const DtypeInfo& format) {
  if (format.name == "F32") return 0;
  if (format.name == "F16") return 1e-3;
  const double bits = format.bits_per_weight();
  if (bits >= 16) return 1e-2;
  return bits < 2 ? 0.7 : bits < 4 ? 0.45 : bits < 5.2 ? 0.15 : 0.08;
}

TEST_F(Cut, EveryFormatThatCanBeWrittenReadsBack) {
  // Rows of 256 fit every format.
  const Model source = made({.d_model = 256, .n_heads = 8, .d_ff = 256});
  const std::vector<int32_t> ids{1, 20, 30, 40, 5, 6, 7};
  int formats = 0;
  for (const DtypeInfo& format : all_dtypes()) {
    if (!format.encodes) continue;
    SCOPED_TRACE(format.name);
    ++formats;
    const Model cut = written(source, uniform_plan(source, format.dtype));
    const auto before = linear_maps(source), after = linear_maps(cut);
    ASSERT_EQ(after.size(), before.size());
    for (size_t i = 0; i < before.size(); ++i) {
      EXPECT_EQ(after[i]->weight.dtype, format.dtype) << after[i]->name;
      EXPECT_LE(relative_error(after[i]->weight, before[i]->weight), error_bound(format))
          << after[i]->name;
    }
    for (const Tensor& t : cut.file->tensors)
      if (t.shape.size() == 1) {
        EXPECT_TRUE(same_bytes(t.data.bytes, source.file->find_tensor(t.name)->data.bytes));
      }
    const MatrixBuffer logits = all_logits(rt, cut, ids);
    for (int64_t i = 0; i < logits.rows() * logits.cols(); ++i)
      ASSERT_TRUE(std::isfinite(logits.data()[i]));
  }
  EXPECT_GE(formats, 18);
}

TEST_F(Cut, ErrorsFollowTheWeightsGiven) {
  // The columns that count more come out closer.
  const Model source = made({});
  const Plan plan = uniform_plan(source, Dtype::Q4_0);
  auto heavy = [](int64_t first) {
    return [first](const std::string&) -> RowWeights {
      return [first](int64_t, std::span<float> w) {
        for (size_t i = 0; i < w.size(); ++i) w[i] = int64_t(i) % 2 == first ? 1000.0f : 1.0f;
      };
    };
  };
  const Model even_columns = cut_model(rt, source, plan, heavy(0));
  const Model odd_columns = cut_model(rt, source, plan, heavy(1));
  auto error_at_even = [&](const Model& cut) {
    const auto a = decoded(cut.embedding.weight), b = decoded(source.embedding.weight);
    double sum = 0;
    for (size_t i = 0; i < a.size(); i += 2) sum += std::pow(double(a[i]) - double(b[i]), 2);
    return sum;
  };
  EXPECT_LT(error_at_even(even_columns), 0.9 * error_at_even(odd_columns));
}

TEST_F(Cut, ThreadsDoNotChangeTheBytes) {
  const Model source = open_tiny("tiny_llama");
  ThreadPool one(1), three(3);
  const Model a = cut_model({rt.kernels, one}, source, uniform_plan(source, Dtype::Q5_1), even);
  const Model b = cut_model({rt.kernels, three}, source, uniform_plan(source, Dtype::Q5_1), even);
  for (size_t i = 0; i < linear_maps(a).size(); ++i)
    EXPECT_TRUE(
        same_bytes(linear_maps(a)[i]->weight.data.bytes, linear_maps(b)[i]->weight.data.bytes));
}

TEST_F(Cut, PlansThatDoNotFitTheModelAreRefused) {
  const Model source = open_tiny("tiny_llama");
  const Plan good = uniform_plan(source, Dtype::Q8_0);
  EXPECT_EQ(error_of(source, good), "no error");

  Plan plan = good;
  plan.decisions.erase(plan.decisions.begin() + 3);
  EXPECT_NE(error_of(source, plan).find("says nothing about '" + good.decisions[3].place),
            std::string::npos)
      << error_of(source, plan);
  plan = good;
  plan.decisions.push_back(good.decisions[2]);
  EXPECT_NE(error_of(source, plan).find("decides '" + good.decisions[2].place + "' twice"),
            std::string::npos)
      << error_of(source, plan);
  plan = good;
  plan.decisions[1].place = "blk.7.attn_q.weight";
  EXPECT_NE(error_of(source, plan).find("names 'blk.7.attn_q.weight', which"), std::string::npos)
      << error_of(source, plan);
  plan = good;
  plan.decisions[1].place = "output_norm.weight";  // a tensor, but no linear map
  EXPECT_NE(error_of(source, plan).find("names 'output_norm.weight', which"), std::string::npos)
      << error_of(source, plan);
  for (Dtype dtype : {Dtype::Q4_K, Dtype::Q1_0, Dtype::IQ2_XXS, Dtype::I8, Dtype::F64}) {
    plan = good;
    plan.decisions[0].chosen.dtype = dtype;  // rows of 64
    const bool written = dtype != Dtype::I8 && dtype != Dtype::F64;
    EXPECT_NE(error_of(source, plan)
                  .find("asks for " + std::string(name(dtype)) + " in '" + good.decisions[0].place +
                        (written ? "', whose rows of 64" : "', a format that is read here")),
              std::string::npos)
        << error_of(source, plan);
  }
}

TEST_F(Cut, OneTensorServesAsHeadAndEmbedding) {
  for (const char* arch : {"llama", "qwen2"})
    for (const char* serves : {"output.weight", "token_embd.weight"}) {
      SCOPED_TRACE(std::string(arch) + " " + serves);
      const Model source = made(
          {.arch = arch, .head = MadeModel::Head::rounded_embedding, .head_dtype = Dtype::Q8_0});
      ASSERT_TRUE(source.head);
      Plan plan = uniform_plan(source, std::nullopt);
      std::erase_if(plan.decisions, [](const auto& d) { return d.place == "output.weight"; });
      plan.head = HeadPlan::tied;
      plan.tied_source = serves;
      // Kept: the bytes of the one that serves, under the embedding's name.
      const Model kept = written(source, plan);
      EXPECT_EQ(kept.file->find_tensor("output.weight"), nullptr);
      EXPECT_FALSE(kept.head);
      EXPECT_EQ(kept.file->tensors.size() + 1, source.file->tensors.size());
      EXPECT_TRUE(same_bytes(kept.file->find_tensor("token_embd.weight")->data.bytes,
                             source.file->find_tensor(serves)->data.bytes));
      // Cut: the other's values do not matter.
      plan.decisions[0].chosen = {.dtype = Dtype::Q4_1};
      const Model cut = written(source, plan);
      EXPECT_EQ(cut.embedding.weight.dtype, Dtype::Q4_1);
      const LinearMap& from =
          std::string_view(serves) == "output.weight" ? *source.head : source.embedding;
      const Weight expected =
          encode_weight(rt, from.weight, Dtype::Q4_1, even("token_embd.weight"));
      EXPECT_TRUE(same_bytes(cut.embedding.weight.data.bytes, expected.data.bytes));
      const std::vector<int32_t> ids{1, 20, 30};
      EXPECT_EQ(all_logits(rt, cut, ids).cols(), 64);

      Plan wrong = plan;
      wrong.tied_source = "blk.0.attn_q.weight";
      EXPECT_NE(error_of(source, wrong).find("tied_source is 'blk.0.attn_q.weight'"),
                std::string::npos)
          << error_of(source, wrong);
      wrong = plan;
      wrong.decisions.push_back({"output.weight", {.dtype = Dtype::Q8_0}, {}, {}});
      EXPECT_NE(error_of(source, wrong).find("names 'output.weight', which"), std::string::npos)
          << error_of(source, wrong);
    }
  const Model tied = made({.head = MadeModel::Head::none});
  Plan plan = uniform_plan(tied, Dtype::Q8_0);
  plan.head = HeadPlan::tied;
  plan.tied_source = "token_embd.weight";
  EXPECT_NE(error_of(tied, plan).find("has only one"), std::string::npos) << error_of(tied, plan);
}

TEST_F(Cut, TheFileSaysHowItWasMade) {
  const Model source = open_tiny("tiny_qwen3");
  const Receipt receipt{.version = "1.2.3",
                        .source_sha256 = std::string(64, 'a'),
                        .goal = "--size 75MB",
                        .aimed_on = "a third text",
                        .plan_sha256 = std::string(64, 'b'),
                        .calibration = "some text",
                        .calibration_sha256 = std::string(64, 'c'),
                        .proof = "other text",
                        .proof_sha256 = std::string(64, 'd'),
                        .predicted_kl = 0.25,
                        .measured_kl = 0.5,
                        .measured_kl_low = 0.4375,
                        .measured_kl_high = 0.5625,
                        .measured_same_top = 0.875};
  const Model cut = written(source, uniform_plan(source, Dtype::Q4_0), receipt);
  const TensorFile& f = *cut.file;
  EXPECT_EQ(f.need_string("microtome.version"), receipt.version);
  EXPECT_EQ(f.need_string("microtome.source.sha256"), receipt.source_sha256);
  EXPECT_EQ(f.need_string("microtome.goal"), receipt.goal);
  EXPECT_EQ(f.need_string("microtome.plan.sha256"), receipt.plan_sha256);
  EXPECT_EQ(f.need_string("microtome.plan.aimed_on"), receipt.aimed_on);
  EXPECT_EQ(f.need_string("microtome.calibration"), receipt.calibration);
  EXPECT_EQ(f.need_string("microtome.calibration.sha256"), receipt.calibration_sha256);
  EXPECT_EQ(f.need_string("microtome.proof"), receipt.proof);
  EXPECT_EQ(f.need_string("microtome.proof.sha256"), receipt.proof_sha256);
  EXPECT_EQ(f.get_float("microtome.kl.predicted"), receipt.predicted_kl);
  EXPECT_EQ(f.get_float("microtome.kl.measured"), receipt.measured_kl);
  EXPECT_EQ(f.get_float("microtome.kl.measured_low"), receipt.measured_kl_low);
  EXPECT_EQ(f.get_float("microtome.kl.measured_high"), receipt.measured_kl_high);
  EXPECT_EQ(f.get_float("microtome.same_top.measured"), receipt.measured_same_top);
  Receipt few = receipt;
  few.intervals_hold = false;
  const Model without = written(source, uniform_plan(source, Dtype::Q4_0), few);
  EXPECT_EQ(without.file->get_float("microtome.kl.measured"), receipt.measured_kl);
  EXPECT_EQ(without.file->find_meta("microtome.kl.measured_low"), nullptr);
  EXPECT_EQ(without.file->find_meta("microtome.kl.measured_high"), nullptr);
  EXPECT_EQ(f.get_int("general.file_type"), 2);  // mostly Q4_0
  EXPECT_EQ(f.get_int("general.quantization_version"), 2);
  // All that the source says is still there, and each key once.
  for (const auto& [key, value] : source.file->metadata)
    if (key != "general.file_type") {
      ASSERT_NE(f.find_meta(key), nullptr) << key;
      EXPECT_EQ(f.find_meta(key)->value, value.value) << key;
    }
  // A cut of the cut has one receipt, its own.
  const Output again = output_of(cut, cut, receipt);
  std::set<std::string> keys;
  for (const auto& [key, value] : again.metadata) EXPECT_TRUE(keys.insert(key).second) << key;
}

}  // namespace
}  // namespace mt
