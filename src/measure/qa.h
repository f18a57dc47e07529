#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "run/forward.h"
#include "text/tokenizer.h"

namespace mt {

struct Question {
  std::string query;
  std::vector<std::string> choices;
  int64_t gold = 0;
};

// One JSON object a line with "query" (text), "choices" (texts) and "gold" (index), or one JSON
// array of objects with "question" and "mc1_targets" (text -> 0 or 1; one is right). Throws Error
// naming file, line and field. limit > 0: only the first ones.
std::vector<Question> read_questions(const std::filesystem::path& path, int64_t limit = 0);

struct QaOptions {
  Path path = Path::exact;
  // Stands between query and choice. Blanks at its end are counted to the choice, as tokens carry
  // the blank before their word.
  std::string separator = "\nAnswer: ";
};

struct Accuracy {
  double value = 0;
  double standard_error = 0;  // sqrt(p (1-p) / (n-1))
};

struct QaResult {
  int64_t n_questions = 0;
  Accuracy raw;         // the choice of the largest sum of ln p(token)
  Accuracy normalised;  // of the largest sum divided by the choice's bytes
  std::vector<std::vector<double>> log_likelihood;  // by question and choice
};

// Multiple choice by the log-likelihood of each choice given the query. The query runs once, its
// choices follow from the cache; several questions run side by side. Throws Error.
QaResult answer_questions(const Runtime& rt, const Model& model, const Tokenizer& tokenizer,
                          const std::vector<Question>& questions, const QaOptions& options = {});

}  // namespace mt
