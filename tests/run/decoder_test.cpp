#include "run/decoder.h"

#include <gtest/gtest.h>

#include <optional>
#include <stdexcept>

#include "base/error.h"
#include "run/tiny.h"

namespace mt {
namespace {

// What the decoder is to give: a token at a time, by nothing but the forward pass and the sampler.
std::vector<int32_t> written_plainly(const Runtime& rt, const Model& model, Path path,
                                     const std::vector<int32_t>& prompt, int64_t n,
                                     const SampleOptions& sampling,
                                     std::optional<KvTypes> types = {}) {
  KvCache cache(model, 1, std::ssize(prompt) + n, types.value_or(default_kv_types(path)));
  Sampler sampler(sampling);
  for (int32_t id : prompt) sampler.accept(id);
  MatrixBuffer row(1, model.n_vocab);
  std::vector<int32_t> out;
  std::vector<int32_t> chunk = prompt;
  while (std::ssize(out) < n) {
    const Chunk c{0, chunk};
    const MatrixBuffer hidden = forward(rt, model, cache, {&c, 1}, {.path = path, .tap = {}});
    logits(rt, model, path, hidden.view().slice_rows(hidden.rows() - 1, hidden.rows()), row);
    const int32_t id = sampler.draw({row.data(), size_t(model.n_vocab)});
    sampler.accept(id);
    out.push_back(id);
    chunk = {id};
  }
  return out;
}

std::vector<std::vector<int32_t>> some_prompts() {
  return {{1, 5, 6, 7, 5, 6, 7, 5, 6},
          {1, 9},
          {1, 30, 31, 32, 33, 30, 31, 32, 33, 30},
          {40},
          {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}};
}

DecoderOptions options_of(Path path, int64_t n_sequences, int64_t n_ctx) {
  return {
      .path = path, .n_sequences = n_sequences, .n_ctx = n_ctx, .types = default_kv_types(path)};
}

TEST(Decoder, DraftsChangeNoText) {
  ThreadPool one(1), two(2);
  int64_t accepted = 0, rejected = 0;
  for (const auto& name : kTinyModels) {
    const Model model = in_format(open_tiny(name), name == "tiny_llama" ? Dtype::F32 : Dtype::Q8_0);
    for (Path path : {Path::fast, Path::exact})
      for (double temperature : {0.0, 0.4, 1.5}) {
        const auto prompt = some_prompts()[temperature > 0 ? 0 : 2];
        const SampleOptions sampling{.temperature = temperature,
                                     .top_k = temperature > 1 ? 0 : 3,
                                     .repeat_penalty = temperature > 1 ? 1.2 : 1.0,
                                     .seed = 7};
        const auto expected =
            written_plainly({select_kernels(), one}, model, path, prompt, 60, sampling);
        for (int64_t draft_min : {0, 1, 7}) {
          const Runtime rt{select_kernels(), draft_min ? one : two};
          DecoderOptions options = options_of(path, 1, 100);
          options.drafts = Drafts::ngram;
          options.draft_min = draft_min;
          Decoder decoder(rt, model, options);
          std::vector<int32_t> told;
          const int64_t place = decoder.join(prompt, sampling, 60, [&](int32_t id) {
            told.push_back(id);
            return true;
          });
          while (decoder.step()) {
          }
          const Written& w = decoder.written(place);
          EXPECT_EQ(w.ids, expected) << name << " " << temperature << " " << draft_min;
          EXPECT_EQ(told, expected);
          EXPECT_EQ(w.finish, Finish::length);
          EXPECT_LE(w.n_drafted, 7 * w.n_verified);
          if (draft_min > 0) {
            accepted += w.n_accepted;
            rejected += w.n_drafted - w.n_accepted;
          }
        }
      }
  }
  EXPECT_GT(accepted, 500);
  EXPECT_GT(rejected, 500);
}

TEST(Decoder, TextsSideBySideAreWhatTheyAreAlone) {
  ThreadPool two(2);
  const Runtime rt{select_kernels(), two};
  for (const std::string name : {"tiny_llama", "tiny_gemma3"}) {
    const Model model = in_format(open_tiny(name), Dtype::Q8_0);
    const auto prompts = some_prompts();
    for (const Drafts drafts : {Drafts::none, Drafts::ngram}) {
      // Two places for five texts of different lengths: each joins while another goes on.
      DecoderOptions options = options_of(Path::fast, 2, 100);
      options.drafts = drafts;
      options.draft_min = 3;
      Decoder decoder(rt, model, options);
      size_t next = 0;
      std::vector<std::vector<int32_t>> texts(prompts.size());
      auto sampling = [](size_t i) {
        return SampleOptions{.temperature = i % 2 ? 0.7 : 0.0, .seed = i};
      };
      int64_t most = 0;
      do {
        for (; next < prompts.size() && decoder.n_free() > 0; ++next)
          decoder.join(prompts[next], sampling(next), 10 + 12 * int64_t(next),
                       [&texts, i = next](int32_t id) {
                         texts[i].push_back(id);
                         return true;
                       });
        most = std::max(most, 2 - decoder.n_free());
      } while (decoder.step() || next < prompts.size());
      EXPECT_EQ(most, 2);
      for (size_t i = 0; i < prompts.size(); ++i)
        EXPECT_EQ(texts[i], written_plainly(rt, model, Path::fast, prompts[i], 10 + 12 * int64_t(i),
                                            sampling(i)))
            << name << " text " << i;
    }
  }
}

// Blocks of 32 positions that are rounded when complete: drafts lie over their borders and are
// taken back, in one text and in several side by side, with windows and without.
TEST(Decoder, KeysByChannelChangeNoTextWithDrafts) {
  ThreadPool two(2);
  const Runtime rt{select_kernels(), two};
  int64_t accepted = 0, rejected = 0;
  for (const auto& [name, before_rope] : {std::pair<std::string, bool>{"tiny_qwen3", false},
                                          {"tiny_gemma3", false},
                                          {"tiny_gemma3", true}}) {
    const KvTypes types{.keys = Dtype::Q4_1, .values = Dtype::Q8_0, .before_rope = before_rope};
    const Model model = in_format(open_tiny(name), Dtype::Q8_0);
    const auto prompts = some_prompts();
    DecoderOptions options = options_of(Path::fast, 3, 200);
    options.types = types;
    options.drafts = Drafts::ngram;
    options.draft_min = 5;
    Decoder decoder(rt, model, options);
    auto sampling = [](size_t i) {
      return SampleOptions{.temperature = 0.4 * double(i), .top_k = 3, .seed = i};
    };
    std::vector<int64_t> places;
    for (size_t i = 0; i < 3; ++i)
      places.push_back(
          decoder.join(prompts[i + 2], sampling(i), 120, [](int32_t) { return true; }));
    while (decoder.step()) {
    }
    for (size_t i = 0; i < 3; ++i) {
      const Written& w = decoder.written(places[i]);
      EXPECT_EQ(w.ids,
                written_plainly(rt, model, Path::fast, prompts[i + 2], 120, sampling(i), types))
          << name << " text " << i;
      accepted += w.n_accepted;
      rejected += w.n_drafted - w.n_accepted;
    }
  }
  EXPECT_GT(accepted, 50);
  EXPECT_GT(rejected, 50);
}

TEST(Decoder, ManyTextsTakeTheBatchedProduct) {
  ThreadPool two(2);
  const Runtime rt{select_kernels(), two};
  const Model model = in_format(made_wide(), Dtype::Q8_0);
  for (const Path path : {Path::exact, Path::fast}) {
    DecoderOptions options = options_of(path, 20, 40);
    options.drafts = Drafts::ngram;
    Decoder decoder(rt, model, options);
    std::vector<int64_t> places;
    for (int32_t i = 0; i < 20; ++i)
      places.push_back(
          decoder.join({1, 3 + i, 5}, {.temperature = 0}, 20, [](int32_t) { return true; }));
    EXPECT_THROW(decoder.join({1}, {}, 1, [](int32_t) { return true; }), Error);
    while (decoder.step()) {
    }
    for (int32_t i = 0; i < 20; ++i) {
      const Written& w = decoder.written(places[size_t(i)]);
      EXPECT_EQ(std::ssize(w.ids), 20);
      if (path == Path::exact) {
        EXPECT_EQ(w.ids, written_plainly(rt, model, path, {1, 3 + i, 5}, 20, {.temperature = 0}));
      }
    }
  }
}

TEST(Decoder, EndsWhereTheTextEnds) {
  ThreadPool two(2);
  const Runtime rt{select_kernels(), two};
  const Model model = open_tiny("tiny_qwen3");
  const std::vector<int32_t> prompt{1, 5, 6, 7, 5, 6, 7, 5, 6};
  const auto whole = written_plainly(rt, model, Path::fast, prompt, 50, {.temperature = 0});
  for (const int64_t draft_min : {0, 7}) {
    DecoderOptions options = options_of(Path::fast, 1, 30);
    options.drafts = draft_min > 0 ? Drafts::ngram : Drafts::none;
    options.draft_min = draft_min;
    Decoder decoder(rt, model, options);
    auto run = [&](int64_t n_predict, int64_t stop_after) {
      int64_t n = 0;
      const int64_t place = decoder.join(prompt, {.temperature = 0}, n_predict,
                                         [&](int32_t) { return ++n != stop_after; });
      while (decoder.step()) {
      }
      return decoder.written(place);
    };
    auto first = [&](int64_t n) { return std::vector(whole.begin(), whole.begin() + n); };
    // One token more than the context holds: the last is not run.
    Written w = run(-1, -1);
    EXPECT_EQ(w.finish, Finish::context);
    EXPECT_EQ(w.ids, first(30 - 9 + 1));
    EXPECT_EQ(w.n_prompt_run, 9);
    for (const int64_t n : {1, 2, 7, 8, 13}) {
      w = run(n, -1);
      EXPECT_EQ(w.finish, Finish::length);
      EXPECT_EQ(w.ids, first(n));
      EXPECT_EQ(w.n_prompt_run, 1) << "the cache knows the prompt";
      w = run(-1, n);
      EXPECT_EQ(w.finish, Finish::stopped);
      EXPECT_EQ(w.ids, first(n));
    }
    w = run(0, -1);
    EXPECT_EQ(w.finish, Finish::length);
    EXPECT_EQ(w.ids, first(0));
    // A context of its own; no larger than the place's.
    for (const int64_t n_ctx : {9, 20, 99}) {
      const int64_t place = decoder.join(
          prompt, {.temperature = 0}, -1, [](int32_t) { return true; }, n_ctx);
      while (decoder.step()) {
      }
      EXPECT_EQ(decoder.written(place).finish, Finish::context);
      EXPECT_EQ(decoder.written(place).ids, first(std::min<int64_t>(n_ctx, 30) - 9 + 1));
    }
    EXPECT_THROW(decoder.join(
                     prompt, {}, 1, [](int32_t) { return true; }, 8),
                 Error);
    EXPECT_FALSE(decoder.step());

    // A conversation that goes on: the tokens drawn are known but for the last, drafted or not.
    w = run(12, -1);
    std::vector<int32_t> more = prompt;
    more.insert(more.end(), w.ids.begin(), w.ids.end());
    more.push_back(11);
    const int64_t place = decoder.join(more, {.temperature = 0}, 1, [](int32_t) { return true; });
    EXPECT_EQ(decoder.written(place).n_prompt_run, 2);
    EXPECT_EQ(decoder.prompt_left(place), 2);
    EXPECT_EQ(decoder.n_free(), 0);
    decoder.leave(place);
    EXPECT_EQ(decoder.n_free(), 1);
    EXPECT_FALSE(decoder.step());
  }
  Decoder decoder(rt, model, options_of(Path::fast, 1, 8));
  EXPECT_THROW(decoder.join({}, {}, 1, [](int32_t) { return true; }), Error);
  EXPECT_THROW(decoder.join(prompt, {}, 1, [](int32_t) { return true; }), Error);
}

TEST(Decoder, WhatACallerThrowsEndsItsTextOnly) {
  ThreadPool two(2);
  const Runtime rt{select_kernels(), two};
  const Model model = open_tiny("tiny_llama");
  Decoder decoder(rt, model, options_of(Path::fast, 2, 40));
  int n = 0;
  const int64_t bad = decoder.join({1, 2}, {.temperature = 0}, 20, [&](int32_t) -> bool {
    if (++n == 4) throw std::runtime_error("enough");
    return true;
  });
  const int64_t good = decoder.join({1, 9}, {.temperature = 0}, 20, [](int32_t) { return true; });
  EXPECT_THROW(while (decoder.step()){}, std::runtime_error);
  EXPECT_FALSE(decoder.active(bad));
  EXPECT_TRUE(decoder.active(good));
  while (decoder.step()) {
  }
  EXPECT_EQ(decoder.written(good).ids,
            written_plainly(rt, model, Path::fast, {1, 9}, 20, {.temperature = 0}));
}

}  // namespace
}  // namespace mt
