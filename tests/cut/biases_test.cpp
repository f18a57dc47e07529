#include "cut/biases.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "cut/cut.h"
#include "cut/refine_state.h"
#include "cut/tiny_cuts.h"
#include "run/tiny.h"
#include "support/folder.h"

namespace mt {
namespace {

using Windows = std::vector<std::vector<int32_t>>;

class Biases : public testing::Test {
 protected:
  ThreadPool pool_{1};
  Runtime rt_{select_kernels(), pool_};

  // Means over tokens of the outputs of `map`'s kind, in this model on the source's inputs.
  std::vector<double> mean_output(const Model& source, const LinearMap& map, Point point,
                                  int64_t layer, const Windows& windows) {
    std::vector<double> sums(static_cast<size_t>(map.weight.rows));
    double n = 0;
    for (const auto& w : windows) {
      KvCache cache(source, 1, std::ssize(w));
      const Chunk chunk{0, w};
      forward(rt_, source, cache, {&chunk, 1}, {.tap = [&](Point p, int64_t l, Matrix x) {
                if (p != point || l != layer) return;
                MatrixBuffer y(x.rows, map.weight.rows);
                matmul(rt_, Path::exact, x, map, y);
                for (int64_t t = 0; t < y.rows(); ++t, n += 1)
                  for (size_t o = 0; o < sums.size(); ++o) sums[o] += double(y.row(t)[o]);
              }});
    }
    for (double& s : sums) s /= n;
    return sums;
  }
};

const Attention& attention(const Model& m) {
  return std::get<Attention>(m.steps[0].sites[0].what);
}
const Mlp& mlp(const Model& m) {
  return std::get<Mlp>(m.steps[1].sites[0].what);
}

TEST_F(Biases, TheMeanOutputOnTheOriginalsInputsIsTheOriginals) {
  for (const auto& name : kTinyModels) {
    const Model source = open_tiny(name);
    const Windows windows = random_windows(source.n_vocab, 3, 40, 7);
    const Model plain = cut_to(rt_, source, {Dtype::Q4_0});
    Model cut = plain;
    correct_biases(rt_, source, input_means(rt_, source, windows), cut);
    auto check = [&](Point point, bool llama_takes_it, auto map_of) {
      const LinearMap &was = map_of(source), &before = map_of(plain), &now = map_of(cut);
      const bool is_free = !was.bias.empty() || (llama_takes_it && source.architecture == "llama");
      EXPECT_EQ(now.bias != before.bias, is_free) << name << " " << was.name;
      if (!is_free) return;
      const auto expected = mean_output(source, was, point, 0, windows);
      const auto rounded = mean_output(source, before, point, 0, windows);
      const auto found = mean_output(source, now, point, 0, windows);
      double error = 0, uncorrected = 0;
      for (size_t o = 0; o < expected.size(); ++o) {
        error += std::pow(found[o] - expected[o], 2);
        uncorrected += std::pow(rounded[o] - expected[o], 2);
      }
      // What is left is the bf16 path's distance from the exact one.
      EXPECT_LT(std::sqrt(error), 0.02 * std::sqrt(uncorrected)) << name << " " << was.name;
    };
    check(
        Point::attn_in, false, [](const Model& m) -> auto& { return attention(m).q; });
    check(
        Point::attn_in, false, [](const Model& m) -> auto& { return attention(m).k; });
    check(
        Point::attn_in, true, [](const Model& m) -> auto& { return attention(m).v; });
    check(
        Point::attn_out, true, [](const Model& m) -> auto& { return attention(m).o; });
    check(
        Point::mlp_in, false, [](const Model& m) -> auto& { return mlp(m).gate; });
    check(
        Point::mlp_in, false, [](const Model& m) -> auto& { return mlp(m).up; });
    check(
        Point::mlp_act, true, [](const Model& m) -> auto& { return mlp(m).down; });
  }
}

TEST_F(Biases, NothingRoundedNothingCorrected) {
  const Model source = open_tiny("tiny_llama");
  Model cut = source;
  correct_biases(rt_, source, input_means(rt_, source, random_windows(source.n_vocab, 1, 20, 7)),
                 cut);
  for (const LinearMap* map : linear_maps(cut)) EXPECT_TRUE(map->bias.empty()) << map->name;
  // In F32 the error is zero, and so is the bias: the same logits.
  Model exact = cut_to(rt_, source, {Dtype::F32});
  for (LinearMap* map : linear_maps(exact)) {  // bytes of their own, the values of the original
    const auto own = std::make_shared<std::vector<std::byte>>(map->weight.data.bytes.begin(),
                                                              map->weight.data.bytes.end());
    map->weight.data = {own, *own};
  }
  correct_biases(rt_, source, input_means(rt_, source, random_windows(source.n_vocab, 1, 20, 7)),
                 exact);
  const auto& bias = attention(exact).v.bias;
  ASSERT_EQ(std::ssize(bias), attention(exact).v.weight.rows);
  EXPECT_TRUE(std::all_of(bias.begin(), bias.end(), [](float b) { return b == 0; }));
  const std::vector<int32_t> ids{1, 20, 30, 40, 5, 6, 7};
  const MatrixBuffer a = all_logits(rt_, source, ids), b = all_logits(rt_, exact, ids);
  for (int64_t i = 0; i < a.rows() * a.cols(); ++i) ASSERT_EQ(a.data()[i], b.data()[i]);
}

TEST_F(Biases, TheFileHoldsThemAndReadsBack) {
  const test::TemporaryFolder folder;
  for (const auto& name : kTinyModels) {
    SCOPED_TRACE(name);
    const Model source = open_tiny(name);
    const Model plain = cut_to(rt_, source, {Dtype::Q4_0});
    Model cut = plain;
    correct_biases(rt_, source, input_means(rt_, source, random_windows(source.n_vocab, 2, 30, 7)),
                   cut);
    Receipt receipt;
    receipt.biases = true;
    const Output output = output_of(source, cut, receipt);
    write_gguf(folder / "cut.gguf", output.metadata, output.tensors);
    const Model read = open_model(folder / "cut.gguf");
    const auto expected = linear_maps(static_cast<const Model&>(cut)), found = linear_maps(read);
    for (size_t i = 0; i < expected.size(); ++i)
      EXPECT_EQ(found[i]->bias, expected[i]->bias) << expected[i]->name;
    EXPECT_EQ(read.file->get_string("microtome.biases"), "corrected");
    if (!maps_with_free_bias(source).empty()) {
      EXPECT_NE(content_hash(cut), content_hash(plain));
    }
  }
}

TEST_F(Biases, AMapWithoutItsMeanInputIsAnError) {
  const Model source = open_tiny("tiny_llama");
  Model cut = cut_to(rt_, source, {Dtype::Q4_0});
  EXPECT_THROW(correct_biases(rt_, source, {}, cut), Error);
}

}  // namespace
}  // namespace mt
