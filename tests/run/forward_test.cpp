#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <tuple>

#include "base/error.h"
#include "run/tiny.h"

namespace mt {
namespace {

double largest_difference(ConstMatrix a, const float* b) {
  double worst = 0;
  for (int64_t t = 0; t < a.rows; ++t)
    for (int64_t i = 0; i < a.cols; ++i)
      worst = std::max(worst, std::fabs(double(a.row(t)[i]) - double(b[t * a.cols + i])));
  return worst;
}

TEST(Forward, LogitsAgreeWithAnIndependentImplementation) {
  ThreadPool pool(2);
  Runtime rt{select_kernels(), pool};
  for (const auto& name : kTinyModels) {
    Model model = open_tiny(name);
    auto ids = read_golden<int32_t>(name + ".ids.i32");
    auto golden = read_golden<float>(name + ".logits.f32");
    ASSERT_EQ(golden.size(), ids.size() * size_t(model.n_vocab)) << name;
    MatrixBuffer out = all_logits(rt, model, ids);
    EXPECT_LT(largest_difference(out, golden.data()), 1e-4) << name;
  }
}

TEST(Forward, SameBitsForEveryInstructionSetAndNumberOfThreads) {
  for (const auto& name : kTinyModels) {
    Model model = open_tiny(name);
    auto ids = read_golden<int32_t>(name + ".ids.i32");
    ThreadPool one(1), three(3);
    MatrixBuffer base = all_logits({reference_kernels(), one}, model, ids);
    for (const Kernels* k : available_kernels()) {
      MatrixBuffer out = all_logits({*k, three}, model, ids);
      EXPECT_EQ(std::memcmp(base.data(), out.data(), size_t(base.rows() * base.cols()) * 4), 0)
          << name << " " << k->name;
    }
  }
}

TEST(Forward, TokenByTokenAgreesWithOneBatch) {
  ThreadPool pool(2);
  Runtime rt{select_kernels(), pool};
  for (const auto& name : kTinyModels) {
    Model model = open_tiny(name);
    auto ids = read_golden<int32_t>(name + ".ids.i32");
    MatrixBuffer whole = all_logits(rt, model, ids);
    KvCache cache(model, 2, std::ssize(ids));
    std::span<const int32_t> all(ids);
    MatrixBuffer row(2, model.n_vocab);
    for (size_t t = 0; t < ids.size(); ++t) {
      // Two sequences side by side, the second only for its first tokens.
      std::vector<Chunk> chunks{{0, all.subspan(t, 1)}};
      if (t < 5) chunks.push_back({1, all.subspan(t, 1)});
      MatrixBuffer hidden = forward(rt, model, cache, chunks);
      logits(rt, model, Path::exact, hidden, row.view().slice_rows(0, hidden.rows()));
      for (int64_t r = 0; r < hidden.rows(); ++r)
        EXPECT_LT(largest_difference(row.view().slice_rows(r, r + 1), whole.row(int64_t(t))), 1e-4)
            << name << " position " << t;
    }
  }
}

TEST(Forward, EmbeddingPlusUpdatesIsTheFinalStream) {
  ThreadPool pool(2);
  Runtime rt{select_kernels(), pool};
  for (const auto& name : kTinyModels) {
    Model model = open_tiny(name);
    auto ids = read_golden<int32_t>(name + ".ids.i32");
    const int64_t n = std::ssize(ids), d = model.d_model;
    std::vector<double> sum(size_t(n * d), 0.0);
    std::vector<float> row(static_cast<size_t>(d));
    for (int64_t t = 0; t < n; ++t) {
      const Weight& w = model.embedding.weight;
      decode_row(w.dtype, w.row(ids[size_t(t)]), row.data(), d);
      for (int64_t i = 0; i < d; ++i)
        sum[size_t(t * d + i)] = double(row[size_t(i)]) * double(model.embedding_scale);
    }
    std::vector<float> stream;
    ForwardOptions options;
    options.tap = [&](Point point, int64_t, Matrix value) {
      if (point == Point::update)
        for (int64_t i = 0; i < n * d; ++i) sum[size_t(i)] += double(value.data[i]);
      if (point == Point::stream) stream.assign(value.data, value.data + n * d);
    };
    all_logits(rt, model, ids, options);
    ASSERT_EQ(stream.size(), sum.size());
    for (size_t i = 0; i < sum.size(); ++i)
      ASSERT_NEAR(sum[i], double(stream[i]), 1e-4 * (1 + std::fabs(sum[i]))) << name;
  }
}

TEST(Forward, FastPathIsNearTheExactOne) {
  ThreadPool pool(2);
  Runtime rt{select_kernels(), pool};
  for (const auto& name : kTinyModels) {
    Model model = open_tiny(name);
    auto ids = read_golden<int32_t>(name + ".ids.i32");
    ids.resize(6);  // few tokens: the quantised dot products
    ForwardOptions fast;
    fast.path = Path::fast;
    MatrixBuffer exact = all_logits(rt, model, ids), quick = all_logits(rt, model, ids, fast);
    EXPECT_LT(largest_difference(quick, exact.data()), 0.2) << name;
  }
}

TEST(Forward, FineWeightsTakeActivationsInTwoTerms) {
  ThreadPool pool(2);
  const Runtime rt{select_kernels(), pool};
  const Model wide = made_wide();
  EXPECT_FALSE(fine_weights(wide));  // none is quantised
  Model mixed = in_format(wide, Dtype::Q4_K);
  const Model finer = in_format(wide, Dtype::Q6_K);
  for (size_t i = 0; i < mixed.steps.size(); ++i)
    if (auto* mlp = std::get_if<Mlp>(&mixed.steps[i].sites.back().what))
      mlp->down = std::get<Mlp>(finer.steps[i].sites.back().what).down;
  EXPECT_FALSE(fine_weights(mixed));
  // Six tokens go the way of batches, single ones that of dot products.
  const std::vector<int32_t> ids{3, 1, 4, 1, 5, 9};
  const ForwardOptions fast{.path = Path::fast, .tap = {}};
  for (const auto& [dtype, fine] : {std::pair{Dtype::Q4_0, false}, std::pair{Dtype::Q5_K, false},
                                    std::pair{Dtype::Q6_K, true}, std::pair{Dtype::Q8_0, true}}) {
    const Model model = in_format(wide, dtype);
    EXPECT_EQ(fine_weights(model), fine) << name(dtype);
    for (size_t n : {size_t{1}, ids.size()}) {
      const auto some = std::span(ids).first(n);
      const double distance =
          relative_rms(all_logits(rt, model, some, fast), all_logits(rt, model, some));
      if (fine)
        EXPECT_LT(distance, 5e-4) << name(dtype) << " n=" << n;
      else
        EXPECT_GT(distance, 1e-2) << name(dtype) << " n=" << n;
    }
  }
}

TEST(Forward, Bf16IsNearTheExactPathAndTheSameEverywhere) {
  ThreadPool one(1), three(3);
  for (const auto& name : kTinyModels) {
    Model model = open_tiny(name);
    const auto all = read_golden<int32_t>(name + ".ids.i32");
    ForwardOptions bf16;
    bf16.path = Path::bf16;
    for (size_t n : {size_t{6}, all.size()}) {
      const auto ids = std::span(all).first(n);
      MatrixBuffer exact = all_logits({select_kernels(), three}, model, ids);
      MatrixBuffer expected = all_logits({reference_kernels(), one}, model, ids, bf16);
      const double distance = relative_rms(expected, exact);
      // An operand rounded to 8 bits is off by 2^-8 at most and by 0.0017 in the root mean square,
      // a product of two by 0.0024, and so is a sum of many whose errors are independent, however
      // long. A dozen products in a row: 0.008. Measured: 0.003 to 0.0105.
      EXPECT_LT(distance, 0.02) << name;
      EXPECT_GT(distance, 0) << name;
      for (const Kernels* table : available_kernels())
        EXPECT_EQ(
            largest_difference(all_logits({*table, three}, model, ids, bf16), expected.data()), 0)
            << name << " " << table->name;
    }
  }
}

// Logits of the last of `ids`, one by one, in sequence 1 of a cache. With `detours`: sequence 0
// runs alongside and other tokens are run and taken back.
MatrixBuffer one_by_one(const Runtime& rt, const Model& model, std::span<const int32_t> ids,
                        const KvTypes& types, bool detours) {
  KvCache cache(model, 2, std::ssize(ids) + 4, types);
  const std::vector<int32_t> wrong{5, 4, 3, 2};
  const ForwardOptions fast{.path = Path::fast, .tap = {}};
  MatrixBuffer hidden;
  for (size_t t = 0; t < ids.size(); ++t) {
    if (detours && t % 7 == 3) {
      const std::vector<Chunk> both{{0, std::span(wrong).first(1 + t % 2)}, {1, wrong}};
      forward(rt, model, cache, both, fast);
      cache.truncate(1, static_cast<int64_t>(t));
    }
    const Chunk chunk{1, ids.subspan(t, 1)};
    hidden = forward(rt, model, cache, {&chunk, 1}, fast);
  }
  EXPECT_EQ(cache.length(1), std::ssize(ids));
  MatrixBuffer out(1, model.n_vocab);
  logits(rt, model, Path::fast, hidden, out);
  return out;
}

TEST(Forward, EveryCacheFormatIsNearF32AndForgetsWhatIsTakenBack) {
  ThreadPool one(1), three(3);
  // Relative, in the root mean square; the rounding of activations is part of each (it flips where
  // a value is nudged). Measured at most:
  // 0.0014, 0.0044, 0.0040, 0.026, 0.045, 0.017, 0.013.
  const std::tuple<Dtype, Dtype, double, bool> types[] = {
      {Dtype::F16, Dtype::F16, 0.004, false},   {Dtype::BF16, Dtype::F32, 0.012, false},
      {Dtype::Q8_0, Dtype::Q8_0, 0.012, false}, {Dtype::Q4_0, Dtype::Q8_0, 0.08, false},
      {Dtype::F16, Dtype::Q4_0, 0.12, false},   {Dtype::Q4_1, Dtype::F16, 0.05, false},
      {Dtype::Q4_1, Dtype::F16, 0.05, true}};
  int n_compared = 0;
  for (const auto& name : kTinyModels) {
    const Model model = open_tiny(name);
    std::vector<int32_t> all_ids = read_golden<int32_t>(name + ".ids.i32");
    for (size_t i = 0; all_ids.size() < 80; ++i) all_ids.push_back(all_ids[i * 3 % 8]);
    for (const auto& [keys, values, bound, before_rope] : types) {
      const KvTypes cache{.keys = keys, .values = values, .before_rope = before_rope};
      // Long enough for several strips (or blocks of two, behind the first in F16), and for the
      // window of Gemma's layers to leave the first.
      const auto ids = std::span(all_ids).first(by_channel(keys) ? 80 : 40);
      const int64_t d = std::get<Attention>(model.steps[0].sites[0].what).d_head;
      if (!kv_type_fits(keys, d) || !kv_type_fits(values, d)) {
        EXPECT_THROW(KvCache(model, 1, 8, cache), Error) << name;
        continue;
      }
      ++n_compared;
      for (const Kernels* table : available_kernels()) {
        const MatrixBuffer base = one_by_one({*table, one}, model, ids, {}, false);
        const MatrixBuffer out = one_by_one({*table, one}, model, ids, cache, false);
        const double distance = relative_rms(out, base);
        EXPECT_LT(distance, bound) << name << " " << table->name << " " << mt::name(keys);
        EXPECT_GT(distance, 0) << name << " " << table->name << " " << mt::name(keys);
        ThreadPool& pool = table == &select_kernels() ? three : one;
        const MatrixBuffer again = one_by_one({*table, pool}, model, ids, cache, true);
        EXPECT_EQ(largest_difference(again, out.data()), 0)
            << name << " " << table->name << " " << mt::name(keys);
      }
    }
  }
  EXPECT_EQ(n_compared, 2 * 5 + 5 * 2);
}

// Logits of the last `n` of ids, behind the others: one by one, or as drafts are looked over, in
// one batch beside another sequence, after a batch of which all but the first were wrong.
std::vector<float> last_logits(const Runtime& rt, const Model& model, Path path,
                               const KvTypes& types, std::span<const int32_t> ids, int64_t n,
                               bool drafted) {
  const int64_t before = std::ssize(ids) - n;
  KvCache cache(model, 2, std::ssize(ids) + 8, types);
  const Chunk prompt{1, ids.first(size_t(before))};
  const ForwardOptions one{.path = path, .tap = {}};
  const ForwardOptions like_single{.path = path, .tap = {}, .like_single = true};
  forward(rt, model, cache, {&prompt, 1}, one);
  MatrixBuffer out(n, model.n_vocab);
  if (!drafted) {
    for (int64_t t = 0; t < n; ++t) {
      const Chunk chunk{1, ids.subspan(size_t(before + t), 1)};
      const MatrixBuffer hidden = forward(rt, model, cache, {&chunk, 1}, one);
      logits(rt, model, path, hidden, out.view().slice_rows(t, t + 1));
    }
  } else {
    std::vector<int32_t> wrong(8, 9);
    wrong[0] = ids[size_t(before)];
    const Chunk drafts{1, wrong};
    forward(rt, model, cache, {&drafts, 1}, like_single);
    cache.truncate(1, before + (n == 8 ? 0 : 1));
    const int64_t kept = cache.length(1) - before;
    const std::vector<Chunk> both{{0, std::span(wrong).first(2)},
                                  {1, ids.subspan(size_t(before + kept))}};
    const MatrixBuffer hidden = forward(rt, model, cache, both, like_single);
    MatrixBuffer all(hidden.rows(), model.n_vocab);
    logits(rt, model, path, hidden, all, true);
    std::copy_n(all.row(2), (n - kept) * model.n_vocab, out.row(kept));
    if (kept) std::fill_n(out.row(0), model.n_vocab, 0.0f);  // not asked for
  }
  if (n != 8) std::fill_n(out.row(0), model.n_vocab, 0.0f);
  return {out.data(), out.data() + out.rows() * out.cols()};
}

TEST(Forward, LikeSingleGivesTheBitsOfTokensOneByOne) {
  ThreadPool one(1), two(2);
  const Model wide = made_wide(), grouped = open_tiny("tiny_gemma3");
  std::vector<int32_t> ids;
  for (int i = 0; i < 101; ++i) ids.push_back(3 + (i * i + i / 5) % 50);
  constexpr Dtype kCaches[] = {Dtype::F32,  Dtype::F16,  Dtype::BF16,
                               Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_1};
  auto expect_same = [&](const Model& model, Path path, const KvTypes& types,
                         const std::string& what) {
    for (const Kernels* table : available_kernels()) {
      if (table != &select_kernels() && what != "Q4_0") continue;
      // Strips of 16 positions: the tokens lie in two of them and in one. Blocks by channel, of 32:
      // in two.
      const bool blocks = by_channel(types.keys);
      for (const auto& [length, n] : {std::pair{blocks ? 97 : 36, 8}, {blocks ? 98 : 42, 5}}) {
        const auto text = std::span(ids).first(size_t(length));
        EXPECT_EQ(last_logits({*table, one}, model, path, types, text, n, false),
                  last_logits({*table, two}, model, path, types, text, n, true))
            << what << " " << table->name << " " << mt::name(types.keys) << " " << n;
      }
    }
  };
  for (Dtype t : {Dtype::F32, Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_K, Dtype::Q6_K, Dtype::MXFP4}) {
    const Model model = in_format(wide, t);
    for (Dtype cache : kCaches)
      if (t == Dtype::Q4_0 || cache == Dtype::F16)
        expect_same(model, Path::fast, {cache, by_channel(cache) ? Dtype::Q8_0 : cache},
                    std::string(mt::name(t)));
    if (t == Dtype::F32 || t == Dtype::Q4_0) expect_same(model, Path::exact, {}, "exact");
  }
  // Windows, grouped queries, norms of heads.
  expect_same(grouped, Path::fast, default_kv_types(Path::fast), "gemma3");
  for (const bool before_rope : {false, true})
    expect_same(grouped, Path::fast,
                {.keys = Dtype::Q4_1, .values = Dtype::F16, .before_rope = before_rope}, "gemma3");
  expect_same(grouped, Path::exact, {}, "gemma3 exact");
}

TEST(Forward, OnlyTheFastPathTakesOtherCaches) {
  ThreadPool pool(1);
  const Runtime rt{reference_kernels(), pool};
  const Model model = open_tiny("tiny_llama");
  const std::vector<int32_t> ids{1, 2};
  const Chunk chunk{0, ids};
  KvCache cache(model, 1, 4, default_kv_types(Path::fast));
  EXPECT_EQ(cache.types().keys, Dtype::F16);
  EXPECT_THROW(forward(rt, model, cache, {&chunk, 1}), Error);
  EXPECT_THROW(forward(rt, model, cache, {&chunk, 1}, {.path = Path::bf16, .tap = {}}), Error);
  EXPECT_NO_THROW(forward(rt, model, cache, {&chunk, 1}, {.path = Path::fast, .tap = {}}));
  EXPECT_THROW(KvCache(model, 1, 4, {.keys = Dtype::Q5_0}), Error);
  EXPECT_THROW(KvCache(open_tiny("tiny_qwen3"), 1, 4, {.values = Dtype::Q4_1}), Error);
  EXPECT_NO_THROW(KvCache(open_tiny("tiny_qwen3"), 1, 4, {.keys = Dtype::Q4_1}));
  EXPECT_NO_THROW(
      KvCache(open_tiny("tiny_qwen3"), 1, 4, {.keys = Dtype::Q4_1, .before_rope = true}));
  EXPECT_THROW(KvCache(open_tiny("tiny_qwen3"), 1, 4, {.keys = Dtype::Q8_0, .before_rope = true}),
               Error);
}

TEST(Forward, RefusesForeignTokensAndAFullCache) {
  ThreadPool pool(1);
  Runtime rt{reference_kernels(), pool};
  Model model = open_tiny("tiny_llama");
  KvCache cache(model, 1, 4);
  std::vector<int32_t> bad{1, int32_t(model.n_vocab)}, long_text{1, 2, 3, 4, 5};
  Chunk a{0, bad}, b{0, long_text};
  EXPECT_THROW(forward(rt, model, cache, {&a, 1}), Error);
  EXPECT_THROW(forward(rt, model, cache, {&b, 1}), Error);
}

// A batch of more tokens than the latest blocks hold, each as if alone; the cache ends within a
// block and within a strip.
TEST(Forward, KeysByChannelFillTheCacheToItsEnd) {
  ThreadPool pool(2);
  const Runtime rt{select_kernels(), pool};
  const Model model = open_tiny("tiny_qwen3");
  std::vector<int32_t> ids;
  for (int i = 0; i < 141; ++i) ids.push_back(3 + (i * i + i / 5) % 50);
  MatrixBuffer behind;
  for (const bool before_rope : {false, true}) {
    const KvTypes types{.keys = Dtype::Q4_1, .values = Dtype::Q4_0, .before_rope = before_rope};
    KvCache singly(model, 1, 141, types), together(model, 1, 141, types);
    MatrixBuffer expected(141, model.d_model);
    for (int64_t t = 0; t < 141; ++t) {
      const Chunk one{0, std::span(ids).subspan(size_t(t), 1)};
      const MatrixBuffer row =
          forward(rt, model, singly, {&one, 1}, {.path = Path::fast, .tap = {}});
      std::copy_n(row.data(), model.d_model, expected.row(t));
    }
    const Chunk all{0, ids};
    const MatrixBuffer rows = forward(rt, model, together, {&all, 1},
                                      {.path = Path::fast, .tap = {}, .like_single = true});
    EXPECT_EQ(largest_difference(rows, expected.data()), 0);
    for (KvCache* cache : {&singly, &together}) {
      const Chunk more{0, std::span(ids).first(1)};
      EXPECT_THROW(forward(rt, model, *cache, {&more, 1}, {.path = Path::fast, .tap = {}}), Error);
    }
    if (before_rope) {
      EXPECT_GT(largest_difference(expected, behind.data()), 0);
    }
    behind = std::move(expected);
  }
}

}  // namespace
}  // namespace mt
