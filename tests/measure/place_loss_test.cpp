#include "measure/place_loss.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "run/tiny.h"

namespace mt {
namespace {

std::vector<double> log_probabilities(const float* row, int64_t n) {
  double top = *std::max_element(row, row + n), sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(double(row[i]) - top);
  std::vector<double> out;
  for (int64_t i = 0; i < n; ++i) out.push_back(double(row[i]) - top - std::log(sum));
  return out;
}

double direct_kl(const Runtime& rt, const Model& base, const Model& cut, const Windows& windows) {
  double total = 0;
  int64_t n = 0;
  for (const auto& window : windows) {
    const MatrixBuffer a = all_logits(rt, base, window), b = all_logits(rt, cut, window);
    for (int64_t t = 0; t < a.rows(); ++t, ++n) {
      const auto p = log_probabilities(a.row(t), a.cols()),
                 q = log_probabilities(b.row(t), b.cols());
      for (size_t v = 0; v < p.size(); ++v) total += std::exp(p[v]) * (p[v] - q[v]);
    }
  }
  return total / double(n);
}

Weight in_format(const Weight& w, Dtype dtype) {
  const int64_t bytes = row_bytes(dtype, w.cols);
  auto buffer = std::make_shared<AlignedBuffer<std::byte>>(size_t(bytes * w.rows));
  std::vector<float> row(static_cast<size_t>(w.cols));
  for (int64_t r = 0; r < w.rows; ++r) {
    decode_row(w.dtype, w.row(r), row.data(), w.cols);
    encode_row(dtype, row.data(), nullptr, buffer->data() + r * bytes, w.cols);
  }
  return {w.rows, w.cols, dtype, {buffer, {buffer->data(), buffer->size()}}};
}

class PlaceLossTest : public testing::Test {
 protected:
  ThreadPool pool{1};
  Runtime rt{select_kernels(), pool};
  static Windows windows_of(const std::string& name) {
    const auto ids = read_golden<int32_t>(name + ".ids.i32");
    return {{ids.begin(), ids.begin() + 30}, {ids.begin() + 20, ids.end()}};
  }
};

TEST_F(PlaceLossTest, IsTheDivergenceOfTwoWholePasses) {
  for (const auto& name : kTinyModels) {
    const Model model = open_tiny(name);
    const Windows windows = windows_of(name);
    PlaceLoss loss(rt, model, windows);
    Model cut = model;
    for (LinearMap* map : linear_maps(cut)) {
      const Weight original = map->weight;
      map->weight = in_format(original, Dtype::Q4_0);
      const double direct = direct_kl(rt, model, cut, windows);
      const double measured = loss.measure(map->name, map->weight);
      EXPECT_GT(direct, 1e-9) << name << " " << map->name;
      // Log-probabilities in f32: what they round to.
      EXPECT_NEAR(measured, direct, 1e-4 * direct + 5e-7) << name << " " << map->name;
      EXPECT_NEAR(loss.measure(map->name, original), 0, 5e-7) << name << " " << map->name;
      map->weight = original;
    }
    EXPECT_THROW(loss.measure("blk.9.attn_q.weight", model.embedding.weight), Error);
  }
}

TEST_F(PlaceLossTest, OfAWholeCutIsTheSameWhateverItStandsOn) {
  for (const auto& name : kTinyModels) {
    const Model model = open_tiny(name);
    const Windows windows = windows_of(name);
    PlaceLoss loss(rt, model, windows);
    Model cut = model;
    for (LinearMap* map : linear_maps(cut)) map->weight = in_format(map->weight, Dtype::Q4_0);
    EXPECT_NEAR(loss.measure(cut), direct_kl(rt, model, cut, windows), 1e-5) << name;
    loss.stand_on(cut);
    std::vector<Model> others{cut};
    const auto places = linear_maps(model);
    for (size_t i = 0; i < places.size(); ++i) {
      others.push_back(cut);
      linear_maps(others.back())[i]->weight = places[i]->weight;
    }
    others.push_back(cut);
    others.back().steps.back().sites[0].norm[0] *= 1.5f;
    for (const Model& other : others)
      EXPECT_NEAR(loss.measure(other), direct_kl(rt, model, other, windows), 1e-5) << name;
    EXPECT_NEAR(loss.measure(model), 0, 5e-7) << name;
  }
}

}  // namespace
}  // namespace mt
