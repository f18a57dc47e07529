#include "measure/qa.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "base/error.h"
#include "file/gguf.h"
#include "measure/eval.h"
#include "model/open.h"
#include "run/tiny.h"
#include "support/folder.h"
#include "support/made_model.h"

namespace mt {
namespace {

// A model whose next token depends on the last one alone, with probabilities that are written
// down: embeddings are axes, which the norm leaves as they are (their mean square is 1), layers add
// nothing, and the head's columns hold the logarithms.
class Bigrams : public testing::Test {
 protected:
  static constexpr int64_t kN = 64;
  ThreadPool pool{2};
  Runtime rt{select_kernels(), pool};
  test::TemporaryFolder folder;
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;

  void SetUp() override {
    test::make_model(folder / "made.gguf", {.d_model = kN});
    const TensorFile made = read_gguf(folder / "made.gguf");
    tokenizer = Tokenizer::open(made);
    auto id = [&](const char* letter) { return tokenizer->encode(letter, false).back(); };
    std::vector<float> head(kN * kN, -1000 / 8.0f), axes(kN * kN, 0.0f);
    for (int64_t t = 0; t < kN; ++t) axes[size_t(t * kN + t)] = 8;  // 8^2 / 64 = 1
    auto set = [&](const char* from, const char* to, double p) {
      head[size_t(id(to) * kN + id(from))] = static_cast<float>(std::log(p) / 8);
    };
    set("a", "b", 0.5), set("a", "c", 0.25), set("a", "d", 0.25);
    set("b", "b", 0.125), set("b", "d", 0.875);
    set("c", "c", 1);
    set("d", "d", 1);
    std::vector<TensorSource> tensors;
    for (const Tensor& t : made.tensors) {
      std::vector<float> values(t.data.bytes.size() / 4, 0.0f);  // of layers
      if (t.name.ends_with("norm.weight")) std::fill(values.begin(), values.end(), 1.0f);
      if (t.name == "output.weight") values = head;
      if (t.name == "token_embd.weight") values = axes;
      tensors.push_back({t.name, t.shape, Dtype::F32,
                         [values](const auto& write) { write(std::as_bytes(std::span(values))); }});
    }
    write_gguf(folder / "bigrams.gguf", made.metadata, tensors);
    model = std::make_unique<Model>(open_model(folder / "bigrams.gguf"));
  }

  QaResult answer(const std::vector<Question>& questions, int64_t n_ctx = 0) {
    return answer_questions(rt, *model, *tokenizer, questions,
                            {.path = Path::exact, .separator = "", .n_ctx = n_ctx});
  }
};

TEST_F(Bigrams, ScoresAreWhatTheTableSays) {
  const std::vector<Question> questions = {
      {"a", {"b", "cccc"}, 1},        // ln 1/2; ln 1/4, a quarter of it a byte
      {"bca", {"bb", "bd", "d"}, 1},  // 1/16; 7/16; 1/4: only the last letter counts
  };
  const QaResult r = answer(questions);
  const std::vector<std::vector<double>> expected = {
      {std::log(0.5), std::log(0.25)}, {std::log(1 / 16.0), std::log(7 / 16.0), std::log(0.25)}};
  for (size_t q = 0; q < expected.size(); ++q)
    for (size_t c = 0; c < expected[q].size(); ++c)
      EXPECT_NEAR(r.log_likelihood[q][c], expected[q][c], 1e-4) << q << c;
  EXPECT_EQ(r.n_questions, 2);
  EXPECT_EQ(r.raw.value, 0.5) << "of the first the wrong one is likelier";
  EXPECT_EQ(r.normalised.value, 1.0) << "a byte of it the right one";
  EXPECT_NEAR(r.raw.standard_error, 0.5, 1e-12);
  EXPECT_EQ(r.n_shortened, 0);
}

TEST_F(Bigrams, LongQuestionsLoseTheirBeginning) {
  const std::vector<Question> questions = {{std::string(500, 'd') + "a", {"b", "cccc"}, 0},
                                           {"a", {"b", "cccc"}, 0}};
  const QaResult r = answer(questions, 20);
  EXPECT_EQ(r.n_shortened, 1);
  for (size_t c = 0; c < 2; ++c) EXPECT_NEAR(r.log_likelihood[0][c], r.log_likelihood[1][c], 1e-4);
  // The model's own context where none is given: 256.
  EXPECT_EQ(answer(questions).n_shortened, 1);
  try {
    answer({{"a", {"b", std::string(30, 'c')}, 0}}, 20);
    ADD_FAILURE() << "a choice of 30 tokens in a context of 20";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("question 1: its longest choice has 30 tokens"),
              std::string::npos)
        << e.what();
  }
}

// Batches, shared beginnings and the cache change nothing: each choice alone, from the definition.
TEST(Qa, EqualsEveryChoiceRunAlone) {
  ThreadPool pool(2);
  Runtime rt{select_kernels(), pool};
  for (const auto& name : kTinyModels) {
    const Model model = open_model(std::string(MT_TEST_DATA) + "/" + name + ".gguf");
    const auto tokenizer = Tokenizer::open(*model.file);
    std::vector<Question> questions;
    for (int q = 0; q < 19; ++q)  // more than one batch
      questions.push_back({"the " + std::string(size_t(1 + q), char('a' + q)),
                           {"one", "another in", std::string(1, char('k' + q % 5))},
                           q % 3});
    const QaResult r = answer_questions(rt, model, *tokenizer, questions,
                                        {.path = Path::exact, .separator = "\n"});
    for (size_t q = 0; q < questions.size(); ++q)
      for (size_t c = 0; c < 3; ++c) {
        auto ids_of = [&](const std::string& text) {
          std::vector<int32_t> ids = tokenizer->encode(text, false);
          if (tokenizer->adds_bos()) ids.insert(ids.begin(), tokenizer->bos());
          return ids;
        };
        const auto query = ids_of(questions[q].query + "\n");
        const auto ids = ids_of(questions[q].query + "\n" + questions[q].choices[c]);
        double expected = 0;
        int64_t row = 0;
        window_logits(rt, model, ids, Path::exact, [&](ConstMatrix rows) {
          for (int64_t i = 0; i < rows.rows; ++i, ++row) {
            if (row + 1 < std::ssize(query) || row + 1 >= std::ssize(ids)) continue;
            const float* logits = rows.data + i * rows.cols;
            double top = *std::max_element(logits, logits + rows.cols), sum = 0;
            for (int64_t v = 0; v < rows.cols; ++v) sum += std::exp(double(logits[v]) - top);
            expected += double(logits[ids[size_t(row + 1)]]) - top - std::log(sum);
          }
        });
        EXPECT_NEAR(r.log_likelihood[q][c], expected, 1e-4 * std::max(1.0, std::fabs(expected)))
            << name << " question " << q << " choice " << c;
      }
  }
}

}  // namespace
}  // namespace mt
