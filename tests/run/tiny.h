#pragma once
#include <cmath>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "model/open.h"
#include "run/forward.h"

namespace mt {

inline const std::vector<std::string> kTinyModels{"tiny_llama", "tiny_llama_b", "tiny_qwen2",
                                                  "tiny_qwen3", "tiny_gemma3"};

inline Model open_tiny(const std::string& name) {
  return open_model(std::string(MT_TEST_DATA) + "/" + name + ".gguf");
}

template <class T>
std::vector<T> read_golden(const std::string& file) {
  std::ifstream in(std::string(MT_TEST_DATA) + "/" + file, std::ios::binary);
  std::vector<char> bytes((std::istreambuf_iterator<char>(in)), {});
  std::vector<T> values(bytes.size() / sizeof(T));
  std::copy_n(bytes.data(), values.size() * sizeof(T), reinterpret_cast<char*>(values.data()));
  return values;
}

inline MatrixBuffer all_logits(const Runtime& rt, const Model& model,
                               std::span<const int32_t> tokens,
                               const ForwardOptions& options = {}) {
  KvCache cache(model, 1, std::ssize(tokens));
  Chunk chunk{0, tokens};
  MatrixBuffer hidden = forward(rt, model, cache, {&chunk, 1}, options);
  MatrixBuffer out(hidden.rows(), model.n_vocab);
  logits(rt, model, options.path, hidden, out);
  return out;
}

// Root of the mean square difference, as a share of that of `exact`.
inline double relative_rms(std::span<const float> values, std::span<const float> exact) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    difference += std::pow(double(values[i]) - double(exact[i]), 2);
    size += std::pow(double(exact[i]), 2);
  }
  return std::sqrt(difference / size);
}
inline double relative_rms(const MatrixBuffer& values, const MatrixBuffer& exact) {
  auto all = [](const MatrixBuffer& m) {
    return std::span<const float>(m.data(), static_cast<size_t>(m.rows() * m.cols()));
  };
  return relative_rms(all(values), all(exact));
}

}  // namespace mt
