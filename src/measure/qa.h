#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "run/forward.h"
#include "text/corpus.h"
#include "text/tokenizer.h"

namespace mt {

struct QaOptions {
  Path path = Path::exact;
  std::optional<KvTypes> kv_types = {};  // of the cache; nothing: what the path has by default
  // Stands between query and choice. Blanks at its end are counted to the choice, as tokens carry
  // the blank before their word.
  std::string separator = "\nAnswer: ";
  // Tokens that question and choice may have; 0: the model's own context. What is longer loses
  // tokens of the question's beginning.
  int64_t n_ctx = 0;
};

struct Accuracy {
  double value = 0;
  double standard_error = 0;  // sqrt(p (1-p) / (n-1))
};

struct QaResult {
  int64_t n_questions = 0;
  int64_t n_shortened = 0;  // questions that lost their beginning
  Accuracy raw;             // the choice of the largest sum of ln p(token)
  Accuracy normalised;      // of the largest sum divided by the choice's bytes
  std::vector<std::vector<double>> log_likelihood;  // by question and choice
};

// Multiple choice by the log-likelihood of each choice given the query. The query runs once, its
// choices follow from the cache; several questions run side by side. Throws Error that names the
// question where a choice alone does not fit the context.
QaResult answer_questions(const Runtime& rt, const Model& model, const Tokenizer& tokenizer,
                          const std::vector<Question>& questions, const QaOptions& options = {});

}  // namespace mt
