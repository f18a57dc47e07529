#include "measure/self_text.h"

#include <algorithm>

#include "base/progress.h"
#include "base/random.h"
#include "run/layers.h"

namespace mt {

int64_t draw(const Kernels& k, std::span<float> logits, double u, double& total) {
  const int64_t n = std::ssize(logits);
  total = k.exp_sum(logits.data(), n, k.max(logits.data(), n));
  double rest = u * total;
  for (int64_t i = 0; i < n; ++i) {
    rest -= static_cast<double>(logits[static_cast<size_t>(i)]);
    if (rest < 0) return i;
  }
  // Rounding left a crumb: the most probable one.
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

std::vector<std::vector<int32_t>> sample_self_text(const Runtime& rt, const Model& model,
                                                   const Tokenizer& tokenizer,
                                                   const SelfTextSettings& settings, int64_t first,
                                                   int64_t n) {
  auto ordinary = [&](int64_t id) {
    auto t = static_cast<int32_t>(id);
    return t < tokenizer.n_vocab() && !tokenizer.is_control(t) && !tokenizer.is_end(t);
  };
  // The draws of one position are numbered by attempts.
  auto random_start = [&](uint64_t sequence, int64_t position) {
    for (uint64_t attempt = 0; attempt < 1000; ++attempt) {
      const uint64_t r = random_bits(settings.seed, sequence,
                                     (uint64_t{1} << 40) + uint64_t(position) * 1000 + attempt);
      const auto id = static_cast<int64_t>(r % static_cast<uint64_t>(model.n_vocab));
      if (ordinary(id)) return static_cast<int32_t>(id);
    }
    return int32_t{0};
  };

  // A random token of a large vocabulary is of a random language; after BOS the model chooses its
  // own, as often as it has read them.
  const bool starts_by_itself = tokenizer.adds_bos() && tokenizer.bos() >= 0;
  std::vector<std::vector<int32_t>> text(static_cast<size_t>(n));
  for (int64_t s = 0; s < n; ++s) {
    auto& tokens = text[static_cast<size_t>(s)];
    tokens.push_back(starts_by_itself ? tokenizer.bos()
                                      : random_start(static_cast<uint64_t>(first + s), 0));
  }
  KvCache cache(model, n, settings.n_tokens);
  MatrixBuffer logit_rows(n, model.n_vocab), last(n, model.d_model);
  Progress progress("writing calibration text", static_cast<uint64_t>(settings.n_tokens));
  std::vector<Chunk> chunks(static_cast<size_t>(n));
  while (std::ssize(text[0]) < settings.n_tokens) {
    const int64_t position = std::ssize(text[0]);
    for (int64_t s = 0; s < n; ++s) {
      std::span<const int32_t> all(text[static_cast<size_t>(s)]);
      chunks[static_cast<size_t>(s)] = {s, all.subspan(static_cast<size_t>(cache.length(s)))};
    }
    MatrixBuffer hidden = forward(rt, model, cache, chunks, {.path = Path::bf16, .tap = {}});
    int64_t row = -1;  // of the last token of each chunk
    for (int64_t s = 0; s < n; ++s) {
      row += std::ssize(chunks[static_cast<size_t>(s)].tokens);
      std::copy_n(hidden.row(row), model.d_model, last.row(s));
    }
    logits(rt, model, Path::bf16, last, logit_rows);
    for_rows(rt, n, [&](int64_t s) {
      const auto sequence = static_cast<uint64_t>(first + s);
      double total;
      int64_t id =
          draw(rt.kernels, logit_rows.view().row_span(s),
               random_uniform(settings.seed, sequence, static_cast<uint64_t>(position)), total);
      text[static_cast<size_t>(s)].push_back(ordinary(id) ? static_cast<int32_t>(id)
                                                          : random_start(sequence, position));
    });
    progress.advance();
  }
  return text;
}

}  // namespace mt
