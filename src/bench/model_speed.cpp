#include "bench/model_speed.h"

#include <algorithm>
#include <cassert>
#include <chrono>

#include "base/random.h"

namespace mt {
namespace {
constexpr int64_t kBatch = 512;
}

TokenCost token_cost(const Model& model, const KvTypes& types) {
  TokenCost cost;
  for (const LinearMap* map : linear_maps(model)) {
    const Weight& w = map->weight;
    if (map == &model.head_map()) {
      cost.head_products += w.rows * w.cols;
      cost.weight_bytes += w.bytes();
    } else if (map == &model.embedding) {
      cost.weight_bytes += row_bytes(w.dtype, w.cols);
    } else {
      cost.weight_products += w.rows * w.cols;
      cost.weight_bytes += w.bytes();
    }
  }
  for (const auto& norm : norms(model))
    cost.weight_bytes += std::ssize(*norm.gain) * static_cast<int64_t>(sizeof(float));
  for (const Step& step : model.steps)
    for (const Site& site : step.sites)
      if (const auto* a = std::get_if<Attention>(&site.what)) {
        cost.kv_bytes_a_position += kv_bytes_a_position(*a, step.layer, types);
        cost.attention_products += 2 * a->n_heads * a->d_head;
      }
  return cost;
}

SpeedBench::SpeedBench(const Model& model, Path path, int64_t capacity, const KvTypes& types)
    : model_(model), path_(path), cache_(model, 1, capacity, types) {
  tokens_.resize(static_cast<size_t>(capacity));
  for (size_t i = 0; i < tokens_.size(); ++i)
    tokens_[i] = static_cast<int32_t>(random_bits(1, 0, i) % static_cast<uint64_t>(model.n_vocab));
}

MatrixBuffer SpeedBench::advance(const Runtime& rt, int64_t n) {
  const auto at = static_cast<size_t>(cache_.length(0));
  const Chunk chunk{.sequence = 0, .tokens = std::span(tokens_).subspan(at, size_t(n))};
  return forward(rt, model_, cache_, {&chunk, 1}, {.path = path_, .tap = {}});
}

double SpeedBench::run(const Runtime& rt, const SpeedTask& task,
                       const std::function<void(int64_t)>& after_step) {
  assert(task.depth + task.tokens <= cache_.capacity());
  cache_.truncate(0, task.depth);
  while (cache_.length(0) < task.depth) {
    const int64_t n = std::min(kBatch, task.depth - cache_.length(0));
    advance(rt, n);
    if (after_step) after_step(n);
  }
  MatrixBuffer row(1, model_.n_vocab);
  const int64_t step = task.phase == Phase::decode ? 1 : kBatch, end = task.depth + task.tokens;
  const auto start = std::chrono::steady_clock::now();
  while (cache_.length(0) < end) {
    const int64_t n = std::min(step, end - cache_.length(0));
    const MatrixBuffer hidden = advance(rt, n);
    if (task.phase == Phase::decode || cache_.length(0) == end)
      logits(rt, model_, path_, hidden.view().slice_rows(n - 1, n), row);
    if (after_step) after_step(n);
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  cache_.truncate(0, task.depth);
  return seconds;
}

Spread spread_of(std::vector<double> values) {
  assert(!values.empty());
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return {.median = (values[(n - 1) / 2] + values[n / 2]) / 2,
          .low = values.front(),
          .high = values.back()};
}

}  // namespace mt
