#include "measure/qa.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/progress.h"
#include "measure/eval.h"

namespace mt {
namespace {

// A question in ids: what all choices begin with, and where each choice's own score starts.
struct Encoded {
  std::vector<std::vector<int32_t>> ids;  // query and choice
  size_t n_context = 0;                   // ids of the query
  bool shortened = false;                 // the query lost its beginning
  size_t n_shared = 0;  // ids that run once; at least one id of every list comes after them
};

// number: of the question, for messages. n_ctx: tokens that may run; 0: any number.
Encoded encode(const Question& question, int64_t number, const Tokenizer& tokenizer,
               const std::string& separator, int64_t n_ctx) {
  std::string context = question.query + separator;
  size_t end = context.find_last_not_of(" \t");
  std::string blanks = end == std::string::npos ? context : context.substr(end + 1);
  context.resize(context.size() - blanks.size());
  std::vector<int32_t> start;
  if (tokenizer.adds_bos() && tokenizer.bos() >= 0) start.push_back(tokenizer.bos());
  auto ids_of = [&](const std::string& text) {
    std::vector<int32_t> ids = start, more = tokenizer.encode(text, false);
    ids.insert(ids.end(), more.begin(), more.end());
    return ids;
  };
  Encoded out;
  std::vector<int32_t> context_ids = ids_of(context);
  size_t longest = 0;
  for (const std::string& choice : question.choices) {
    out.ids.push_back(ids_of(context + blanks + choice));
    longest = std::max(longest, out.ids.back().size());
  }
  // The last id of a choice does not run.
  if (n_ctx > 0 && longest > static_cast<size_t>(n_ctx) + 1) {
    const auto excess = static_cast<std::ptrdiff_t>(longest - static_cast<size_t>(n_ctx) - 1);
    const auto bos = std::ssize(start);
    if (std::ssize(context_ids) <= bos + excess)
      throw_error("question {}: its longest choice has {} tokens, the context holds {}", number,
                  longest - context_ids.size(), n_ctx);
    auto shorten = [&](std::vector<int32_t>& ids) {
      // A choice that merges with the query's end may have fewer ids than the query alone.
      ids.erase(ids.begin() + bos, ids.begin() + std::min(bos + excess, std::ssize(ids)));
    };
    shorten(context_ids);
    for (auto& ids : out.ids) shorten(ids);
    out.shortened = true;
  }
  out.n_context = context_ids.size();
  size_t shared = context_ids.size();
  for (const auto& ids : out.ids) {
    if (ids.size() < 2)
      throw_error("question {}: it has too few tokens before its choices", number);
    auto differ = std::mismatch(ids.begin(), ids.end(), context_ids.begin(), context_ids.end());
    shared = std::min(shared, static_cast<size_t>(differ.first - ids.begin()));
    // An empty choice, or one that merged with the query's last token, still scores one token.
    out.n_context = std::min(out.n_context, ids.size() - 1);
  }
  out.n_context = std::max<size_t>(out.n_context, 1);
  // The last shared token runs with each choice: its output predicts the choice's first token.
  size_t common = std::min(shared, out.n_context);
  out.n_shared = common > 0 ? common - 1 : 0;
  return out;
}

// ln p of one id under a row of logits; exps: room for the row.
double log_p(const Kernels& k, const float* row, int64_t n_vocab, int32_t id, float* exps) {
  float top = k.max(row, n_vocab);
  std::copy_n(row, n_vocab, exps);
  return double(row[id]) - top - std::log(k.exp_sum(exps, n_vocab, top));
}

Accuracy accuracy(int64_t right, int64_t n) {
  double p = n > 0 ? double(right) / double(n) : 0;
  return {p, n > 1 ? std::sqrt(p * (1 - p) / double(n - 1)) : 0};
}

class Scorer {
 public:
  Scorer(const Runtime& rt, const Model& model, Path path, const KvTypes& types)
      : rt_(rt), model_(model), path_(path), types_(types) {}

  // Fills scores[i][c] for a batch of questions.
  void score(std::span<const Encoded> batch, std::span<std::vector<double>> scores) {
    size_t longest = 0, most_choices = 0;
    for (const Encoded& q : batch) {
      for (const auto& ids : q.ids) longest = std::max(longest, ids.size());
      most_choices = std::max(most_choices, q.ids.size());
    }
    KvCache cache(model_, std::ssize(batch), static_cast<int64_t>(longest), types_);
    std::vector<Chunk> chunks;
    for (size_t i = 0; i < batch.size(); ++i)
      if (batch[i].n_shared > 0)
        chunks.push_back(
            {static_cast<int64_t>(i), std::span(batch[i].ids[0]).first(batch[i].n_shared)});
    if (!chunks.empty()) forward(rt_, model_, cache, chunks, {.path = path_, .tap = {}});
    for (size_t c = 0; c < most_choices; ++c) score_choice(batch, c, cache, scores);
  }

 private:
  struct Wanted {
    int64_t row;  // of the batch's hidden states
    int32_t id;   // the token it should predict
    size_t question;
  };

  void score_choice(std::span<const Encoded> batch, size_t c, KvCache& cache,
                    std::span<std::vector<double>> scores) {
    std::vector<Chunk> chunks;
    std::vector<Wanted> wanted;
    int64_t row = 0;
    for (size_t i = 0; i < batch.size(); ++i) {
      const Encoded& q = batch[i];
      if (c >= q.ids.size()) continue;
      cache.truncate(static_cast<int64_t>(i), static_cast<int64_t>(q.n_shared));
      const auto& ids = q.ids[c];
      // The last id predicts nothing that is asked for.
      auto tokens = std::span(ids).subspan(q.n_shared, ids.size() - 1 - q.n_shared);
      chunks.push_back({static_cast<int64_t>(i), tokens});
      for (size_t t = q.n_context; t < ids.size(); ++t)
        wanted.push_back({row + static_cast<int64_t>(t - 1 - q.n_shared), ids[t], i});
      row += std::ssize(tokens);
      scores[i][c] = 0;
    }
    MatrixBuffer hidden = forward(rt_, model_, cache, chunks, {.path = path_, .tap = {}});
    MatrixBuffer picked(std::ssize(wanted), hidden.cols());
    for (size_t w = 0; w < wanted.size(); ++w)
      std::copy_n(hidden.row(wanted[w].row), hidden.cols(), picked.row(static_cast<int64_t>(w)));
    const int64_t slice = logits_slice_rows(model_.n_vocab);
    MatrixBuffer rows(std::min(slice, picked.rows()), model_.n_vocab);
    MatrixBuffer exps(rt_.pool.size(), model_.n_vocab);
    std::vector<double> found(wanted.size());
    for (int64_t begin = 0; begin < picked.rows(); begin += slice) {
      int64_t end = std::min(begin + slice, picked.rows());
      Matrix part = rows.view().slice_rows(0, end - begin);
      logits(rt_, model_, path_, picked.view().slice_rows(begin, end), part);
      rt_.pool.parallel_for(end - begin, [&](int64_t r, int thread) {
        auto w = static_cast<size_t>(begin + r);
        found[w] = log_p(rt_.kernels, part.row(r), model_.n_vocab, wanted[w].id, exps.row(thread));
      });
    }
    for (size_t w = 0; w < wanted.size(); ++w) scores[wanted[w].question][c] += found[w];
  }

  const Runtime& rt_;
  const Model& model_;
  Path path_;
  KvTypes types_;
};

}  // namespace

QaResult answer_questions(const Runtime& rt, const Model& model, const Tokenizer& tokenizer,
                          const std::vector<Question>& questions, const QaOptions& options) {
  // Enough tokens side by side that decoding the weights does not count.
  constexpr size_t kBatch = 16;
  QaResult out;
  Scorer scorer(rt, model, options.path, options.kv_types.value_or(default_kv_types(options.path)));
  Progress progress("answering questions", questions.size());
  int64_t right = 0, right_normalised = 0;
  for (size_t begin = 0; begin < questions.size(); begin += kBatch) {
    size_t end = std::min(begin + kBatch, questions.size());
    std::vector<Encoded> batch;
    std::vector<std::vector<double>> scores;
    for (size_t i = begin; i < end; ++i) {
      batch.push_back(encode(questions[i], static_cast<int64_t>(i) + 1, tokenizer,
                             options.separator,
                             options.n_ctx > 0 ? options.n_ctx : model.context_length));
      out.n_shortened += batch.back().shortened;
      scores.emplace_back(questions[i].choices.size());
    }
    scorer.score(batch, scores);
    for (size_t i = begin; i < end; ++i) {
      const auto& s = scores[i - begin];
      std::vector<double> per_byte;
      for (size_t c = 0; c < s.size(); ++c)
        per_byte.push_back(
            s[c] / static_cast<double>(std::max<size_t>(questions[i].choices[c].size(), 1)));
      auto best = [](const std::vector<double>& v) {
        return std::max_element(v.begin(), v.end()) - v.begin();
      };
      right += best(s) == questions[i].gold;
      right_normalised += best(per_byte) == questions[i].gold;
      out.log_likelihood.push_back(s);
    }
    progress.advance(end - begin);
  }
  out.n_questions = std::ssize(questions);
  out.raw = accuracy(right, out.n_questions);
  out.normalised = accuracy(right_normalised, out.n_questions);
  return out;
}

}  // namespace mt
